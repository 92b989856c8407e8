// The host's side of the dialect for a vendor whose runtime has CUDA's functions under a prefix of its own. A vendor.h
// closes with this file, after it has defined SBHAL_RUNTIME(name), which gives a name the prefix, and in sbhal::vendor
// the type DeviceProperties and wavefront_of(properties).
#pragma once
#include "properties.h"

namespace sbhal {
namespace vendor {

using Stream = SBHAL_RUNTIME(Stream_t);

// The text of a problem, null if there is none.
inline const char* text(SBHAL_RUNTIME(Error_t) error) {
  return error == SBHAL_RUNTIME(Success) ? nullptr : SBHAL_RUNTIME(GetErrorString)(error);
}
inline const char* last_launch_error() { return text(SBHAL_RUNTIME(GetLastError)()); }
inline const char* count_devices(int* count) { return text(SBHAL_RUNTIME(GetDeviceCount)(count)); }
inline const char* driver_version(int* version) { return text(SBHAL_RUNTIME(DriverGetVersion)(version)); }

inline const char* describe_device(int index, Device* out) {
  DeviceProperties p;
  if (const char* problem = text(SBHAL_RUNTIME(GetDeviceProperties)(&p, index))) return problem;
  *out = {};
  __builtin_memcpy(out->name, p.name, sizeof(p.name) < sizeof(out->name) ? sizeof(p.name) : sizeof(out->name) - 1);
  out->wave = wavefront_of(p), out->shared_memory = static_cast<int>(p.sharedMemPerBlock);
  out->multiprocessors = p.multiProcessorCount, out->major = p.major, out->minor = p.minor;
  out->memory = static_cast<int64_t>(p.totalGlobalMem);
  return nullptr;
}

// Why the device cannot run a kernel of this module.
inline const char* check_kernel(const void* kernel) {
  SBHAL_RUNTIME(FuncAttributes) attributes;
  return text(SBHAL_RUNTIME(FuncGetAttributes)(&attributes, kernel));
}

}  // namespace vendor
}  // namespace sbhal
