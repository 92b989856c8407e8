// NVIDIA's side of the dialect, for nvcc: compute capability 8.0 and later.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define SBHAL_WAVE 32
#define SBHAL_MMA_16X8X16 1
#define SBHAL_DEVICE static __device__ __forceinline__

namespace sbhal {
namespace vendor {

// ---- device code

SBHAL_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
SBHAL_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }
SBHAL_DEVICE float f16_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
SBHAL_DEVICE uint16_t float_to_f16(float value) { return __half_as_ushort(__float2half_rn(value)); }
SBHAL_DEVICE uint16_t float_to_bf16(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

constexpr unsigned kAllLanes = 0xffffffffu;
template <class T> SBHAL_DEVICE T shuffle(T v, int from) { return __shfl_sync(kAllLanes, v, from); }
template <class T> SBHAL_DEVICE T shuffle_xor(T v, int mask) { return __shfl_xor_sync(kAllLanes, v, mask); }
SBHAL_DEVICE uint64_t ballot(bool yes) { return __ballot_sync(kAllLanes, yes); }
SBHAL_DEVICE void wave_sync() { __syncwarp(); }

template <bool brain_float> SBHAL_DEVICE void mma_16x8x16(const uint32_t (&a)[4], const uint32_t (&b)[2], float* c) {
  if (brain_float)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- host code

using DeviceProperties = cudaDeviceProp;
inline int wavefront_of(const DeviceProperties& p) { return p.warpSize; }

}  // namespace vendor
}  // namespace sbhal

#define SBHAL_RUNTIME(name) cuda##name
#include "gpu/runtime.h"
