// What is known of a device.
#pragma once
#include <cstdint>

namespace sbhal {

struct Device {
  char name[256];
  int wave, shared_memory, multiprocessors;
  int major, minor;  // compute capability; 0 where the vendor has none
  int64_t memory;    // bytes
};

// The properties that runtimes made after CUDA's report under the same names.
template <class Properties> void copy_properties(const Properties& p, Device* out) {
  *out = {};
  __builtin_memcpy(out->name, p.name, sizeof(p.name) < sizeof(out->name) ? sizeof(p.name) : sizeof(out->name) - 1);
  out->wave = p.warpSize, out->shared_memory = static_cast<int>(p.sharedMemPerBlock);
  out->multiprocessors = p.multiProcessorCount;
  out->memory = static_cast<int64_t>(p.totalGlobalMem);
}

}  // namespace sbhal
