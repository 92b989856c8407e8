// Device memory apart from the host's: tensors are copied into it for a call, only kernels can touch it, and what they
// changed is copied back.
#pragma once
#include "core/tensor.h"

namespace [[gnu::visibility("hidden")]] simt {

class Call;

// Runs a planned launch on device memory.
void run_staged(const sbhal::KernelEntry* entry, sbhal::Value* values);

// Lets kernels touch the memory of the call that this OS thread is in, as long as a grid runs.
class OpenMemory {
 public:
  OpenMemory();
  ~OpenMemory();
  // Brings what the grid changed back to the host. Returns beside which argument it wrote, null if it did not.
  const char* finish();

 private:
  Call* const call_;
};

}  // namespace simt
