// A stand-in for MetaX's SDK: the mc* names that vendor.h uses, over the simulated GPU of csrc/simt with a wavefront of
// 64 and 64 KiB of shared memory. Written from public uses of the SDK, for machines that do not have it. It proves that
// the kernels hold for such a device and that the names are used consistently; it says nothing about MetaX hardware.
#pragma once
#include <cmath>

#include "simt/simt.h"

typedef void* mcStream_t;
enum mcError_t { mcSuccess, mcErrorLaunchFailure };

// ---- device code. A mask of 32 bits selects half a wavefront, so only those of 64 are taken.

template <class T> T __shfl_sync(uint64_t, T v, int lane, simt::Site site) {
  T got;
  simt::exchange(&v, &got, sizeof(T), lane, site);
  return got;
}
template <class T> T __shfl_xor_sync(uint64_t mask, T v, int lanes, simt::Site site) {
  return __shfl_sync(mask, v, static_cast<int>(threadIdx.x % SBHAL_SIMT_WAVE) ^ lanes, site);
}
inline uint64_t __ballot_sync(uint64_t, bool yes, simt::Site site) { return simt::ballot(yes, site); }
template <class T> T __shfl_sync(uint32_t, T, int, simt::Site) = delete;
template <class T> T __shfl_xor_sync(uint32_t, T, int, simt::Site) = delete;
uint64_t __ballot_sync(uint32_t, bool, simt::Site) = delete;
inline void __syncwarp(simt::Site site) { simt::wave_sync(site); }

typedef _Float16 mcHalf4 __attribute__((vector_size(8)));
typedef float mcFloat4 __attribute__((vector_size(16)));
inline mcFloat4 mc_mma_16x16x16(bool brain_float, mcHalf4 a, mcHalf4 b, mcFloat4 c, simt::Site site) {
  uint16_t left[4], right[4];
  float sums[4];
  __builtin_memcpy(left, &a, sizeof(left)), __builtin_memcpy(right, &b, sizeof(right));
  __builtin_memcpy(sums, &c, sizeof(sums));
  simt::mma_16x16x16(brain_float, left, right, sums, site);
  __builtin_memcpy(&c, sums, sizeof(sums));
  return c;
}
#define __builtin_mxc_mma_16x16x16bf16(a, b, ...) mc_mma_16x16x16(true, a, b, __VA_ARGS__)
#define __builtin_mxc_mma_16x16x16f16(a, b, ...) mc_mma_16x16x16(false, a, b, __VA_ARGS__)

// ---- host code

namespace simt {
inline const char* launch_error;  // of the last launch, kept between mcGetLastError and mcGetErrorString
}
inline mcError_t mcGetLastError() {
  simt::launch_error = simt::last_error();
  return simt::launch_error ? mcErrorLaunchFailure : mcSuccess;
}
inline const char* mcGetErrorString(mcError_t) { return simt::launch_error ? simt::launch_error : "no error"; }
inline mcError_t mcGetDeviceCount(int* count) {
  *count = 1;
  return mcSuccess;
}

inline mcError_t mcDriverGetVersion(int* version) {
  *version = 0;
  return mcSuccess;
}

struct mcDeviceProp_t {
  char name[256];
  int multiProcessorCount, major, minor;
  size_t sharedMemPerBlock, totalGlobalMem;
};
inline mcError_t mcGetDeviceProperties(mcDeviceProp_t* out, int) {
  *out = {"MetaX-like GPU simulated on a CPU", 1, 0, 0, 64 * 1024, 0};
  return mcSuccess;
}

struct mcFuncAttributes {};
inline mcError_t mcFuncGetAttributes(mcFuncAttributes*, const void*) { return mcSuccess; }
