// The kernels that were linked into this module; weak, as there may be none.
#pragma once
#include <stdexcept>
#include <string>

#include "tensor.h"

namespace sbhal {

extern "C" {
extern const KernelEntry* const __start_sbhal_kernels[] __attribute__((weak, visibility("hidden")));
extern const KernelEntry* const __stop_sbhal_kernels[] __attribute__((weak, visibility("hidden")));
}

// While a module is loaded this becomes ImportError. Which of two kernels ran would depend on the order of linking.
[[noreturn]] inline void refuse_second_kernel(const char* op) {
  throw std::runtime_error(std::string("two kernels of ") + op + " are linked into this module");
}

}  // namespace sbhal
