// What is known of a device.
#pragma once
#include <cstdint>

namespace sbhal {

struct Device {
  char name[256];
  int wave, shared_memory, multiprocessors;
  int major, minor;  // compute capability, 0 if there is none
  int64_t memory;    // bytes
};

}  // namespace sbhal
