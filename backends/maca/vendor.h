// MetaX's side of the dialect. Three ways to compile it: mxcc with the SDK's own names; cucc of the SDK's cu-bridge,
// which takes the same functions under CUDA's names (SBHAL_CU_BRIDGE); and g++ with the stand-in SDK of this folder,
// which runs on a CPU. Only the last has ever been run: the names of the other two come from MetaX's public
// repositories.
#pragma once
#ifdef SBHAL_CU_BRIDGE
#include <cuda_runtime.h>
#define SBHAL_RUNTIME(name) cuda##name
#else
#include <mcr/mc_runtime.h>
#define SBHAL_RUNTIME(name) mc##name
#endif

#include <cstdint>

#define SBHAL_WAVE 64
#define SBHAL_MMA_16X16X16 1
#ifdef __MACA_ARCH__
#define SBHAL_DEVICE_PASS 1
#endif
#define SBHAL_DEVICE static __device__ __forceinline__

#include "gpu/float16.h"
#include "gpu/site.h"

namespace sbhal {
namespace vendor {

// ---- device code

constexpr uint64_t kAllLanes = ~uint64_t{0};  // a mask of 32 bits would cut the wavefront in half
template <class T> SBHAL_DEVICE T shuffle(T v, int from SBHAL_SITE) {
  return __shfl_sync(kAllLanes, v, from SBHAL_HERE);
}
template <class T> SBHAL_DEVICE T shuffle_xor(T v, int mask SBHAL_SITE) {
  return __shfl_xor_sync(kAllLanes, v, mask SBHAL_HERE);
}
SBHAL_DEVICE uint64_t ballot(bool yes SBHAL_SITE) { return __ballot_sync(kAllLanes, yes SBHAL_HERE); }
SBHAL_DEVICE void wave_sync(SBHAL_ONLY_SITE) { __syncwarp(SBHAL_ONLY_HERE); }

// Both 16-bit types travel as vectors of four halves.
template <bool brain_float>
SBHAL_DEVICE void mma_16x16x16(const uint16_t (&a)[4], const uint16_t (&b)[4], float (&c)[4] SBHAL_SITE) {
  typedef _Float16 Operand __attribute__((vector_size(8)));
  typedef float Sums __attribute__((vector_size(16)));
  Operand left, right;
  Sums sums;
  __builtin_memcpy(&left, a, sizeof(left)), __builtin_memcpy(&right, b, sizeof(right));
  __builtin_memcpy(&sums, c, sizeof(sums));
  sums = brain_float ? __builtin_mxc_mma_16x16x16bf16(left, right, sums SBHAL_HERE)
                     : __builtin_mxc_mma_16x16x16f16(left, right, sums SBHAL_HERE);
  __builtin_memcpy(c, &sums, sizeof(sums));
}

// ---- host code

#ifdef SBHAL_CU_BRIDGE
using DeviceProperties = cudaDeviceProp;
#else
using DeviceProperties = mcDeviceProp_t;
#endif
inline int wavefront_of(const DeviceProperties&) { return SBHAL_WAVE; }

}  // namespace vendor
}  // namespace sbhal

#include "gpu/runtime.h"
