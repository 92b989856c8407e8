// The instruction sets that kernels are compiled for, and the best one this processor runs.
#pragma once
#include <map>
#include <string>

#include "tensor.h"

namespace sbhal {

const char* isa_name(int isa);

int detected_isa();

// What SBHAL_CPU_ISA forces, else the detected one; throws for a name or a level that can't be had.
int chosen_isa();

// For each operator the kernel of the highest instruction set up to `isa`.
std::map<std::string, const KernelEntry*> best_kernels(int isa);

}  // namespace sbhal
