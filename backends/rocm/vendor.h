// AMD's side of the dialect, for hipcc or clang. Written against HIP 5.2, which has no bfloat16 header and no shuffles
// with masks, and good for what came later.
#pragma once
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>

#include <cstdint>

// In device code only: one fat binary holds targets of both sizes, so the host pass has none.
#if defined(__GFX9__)
#define SBHAL_WAVE 64
#else
#define SBHAL_WAVE 32
#endif
#if defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__) || defined(__gfx950__)
#define SBHAL_MMA_16X16X16 1
#endif
#ifdef __HIP_DEVICE_COMPILE__
#define SBHAL_DEVICE_PASS 1
#endif
#define SBHAL_DEVICE static __device__ __forceinline__
// HIP counts wavefronts of each of a compute unit's four processors.
#define SBHAL_BOUNDS(threads, blocks) __launch_bounds__(threads, ((threads) * (blocks) + 255) / 256)

#include "gpu/float16.h"

namespace sbhal {
namespace vendor {

// ---- device code

template <class T> SBHAL_DEVICE T shuffle(T v, int from) { return __shfl(v, from); }
template <class T> SBHAL_DEVICE T shuffle_xor(T v, int mask) { return __shfl_xor(v, mask); }
SBHAL_DEVICE uint64_t ballot(bool yes) { return __ballot(yes); }
SBHAL_DEVICE void wave_sync() {
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  __builtin_amdgcn_wave_barrier();
}

#if defined(SBHAL_MMA_16X16X16)
template <bool brain_float>
SBHAL_DEVICE void mma_16x16x16(const uint16_t (&a)[4], const uint16_t (&b)[4], float (&c)[4]) {
  typedef float Sums __attribute__((ext_vector_type(4)));
  typedef short Brain __attribute__((ext_vector_type(4)));
  typedef _Float16 Half __attribute__((ext_vector_type(4)));
  Sums sums;
  __builtin_memcpy(&sums, c, sizeof(sums));
  if constexpr (brain_float) {
    Brain left, right;
    __builtin_memcpy(&left, a, sizeof(left)), __builtin_memcpy(&right, b, sizeof(right));
    sums = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(left, right, sums, 0, 0, 0);
  } else {
    Half left, right;
    __builtin_memcpy(&left, a, sizeof(left)), __builtin_memcpy(&right, b, sizeof(right));
    sums = __builtin_amdgcn_mfma_f32_16x16x16f16(left, right, sums, 0, 0, 0);
  }
  __builtin_memcpy(c, &sums, sizeof(sums));
}
#endif

// ---- host code

using DeviceProperties = hipDeviceProp_t;
inline int wavefront_of(const DeviceProperties& p) { return p.warpSize; }

}  // namespace vendor
}  // namespace sbhal

#define SBHAL_RUNTIME(name) hip##name
#include "gpu/runtime.h"
