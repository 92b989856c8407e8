// What a GPU kernel may use beyond the words that every vendor's compiler shares (__global__, threadIdx, blockIdx,
// __syncthreads, integer atomics, float maths). A csrc/ops/<family>/<op>_gpu.hip includes this file and nothing of a
// vendor's.
//
// Blocks and grids are one-dimensional. A block has a multiple of 64 threads, so it is whole wavefronts on every
// device; host code never knows the wavefront's size, device code takes it from SBHAL_WAVE and never writes it as a
// number. Lanes of a wavefront do not run in step: what one lane reads of another's memory needs wave_sync() between.
// No kernel adds floats atomically: results are the same bits on every run.
#pragma once
#include "core/kernel.h"
#include "core/scalar.h"
#include "launch.h"
#include "site.h"

// Stands before the name of a kernel with blocks of `threads`, of which a multiprocessor should hold `blocks` at once.
#ifndef SBHAL_BOUNDS
#define SBHAL_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#endif

// An array of `count` elements in the block's shared memory, uninitialised. The total of a kernel may be 48 KiB: what
// every device gives without being asked.
#ifdef SBHAL_SIMT
#define SBHAL_SHARED(type, name, count)                                                      \
  static const ::simt::SharedArray name##_array(sizeof(type) * (count), __FILE__, __LINE__); \
  type* const name = static_cast<type*>(name##_array.get())
#else
#define SBHAL_SHARED(type, name, count)                                                  \
  static_assert(sizeof(type) * (count) <= 48 * 1024, "at most 48 KiB of shared memory"); \
  __shared__ __align__(16) type name[count]
#endif

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// ---- elements

SBHAL_INLINE float to_float(float x) { return x; }
SBHAL_INLINE float to_float(bf16 x) { return vendor::as_float(static_cast<uint32_t>(x.bits) << 16); }
SBHAL_INLINE float to_float(f16 x) { return vendor::f16_to_float(x.bits); }

template <class T> SBHAL_INLINE T from_float(float x);  // rounds to nearest, ties to even; NaN stays NaN
template <> SBHAL_INLINE float from_float<float>(float x) { return x; }
template <> SBHAL_INLINE bf16 from_float<bf16>(float x) { return {vendor::float_to_bf16(x)}; }
template <> SBHAL_INLINE f16 from_float<f16>(float x) { return {vendor::float_to_f16(x)}; }

// Element i of a tensor of any float dtype.
SBHAL_INLINE float float_at(const Tensor& x, int64_t i) {
  if (x.dtype == DType::f32) return static_cast<const float*>(x.data)[i];
  if (x.dtype == DType::bf16) return to_float(static_cast<const bf16*>(x.data)[i]);
  return to_float(static_cast<const f16*>(x.data)[i]);
}

// ---- offsets and lengths, which the host cannot read

// Entry n; one that lies outside of an axis of `most` leads nowhere else.
template <class I> SBHAL_INLINE I index_within(const Tensor& t, int64_t n, I most) {
  return static_cast<I>(max<int64_t>(0, min<int64_t>(most, index_at(t, n))));
}

// ---- wavefronts. Every lane of the wavefront must make the call. Values are float, int32_t or uint32_t.

SBHAL_INLINE int lane() { return static_cast<int>(threadIdx.x) % SBHAL_WAVE; }
SBHAL_INLINE int wave() { return static_cast<int>(threadIdx.x) / SBHAL_WAVE; }

template <class T> SBHAL_INLINE T shuffle(T v, int from SBHAL_SITE) { return vendor::shuffle(v, from SBHAL_HERE); }
template <class T> SBHAL_INLINE T shuffle_xor(T v, int mask SBHAL_SITE) {
  return vendor::shuffle_xor(v, mask SBHAL_HERE);
}
// Bit i is lane i's.
SBHAL_INLINE uint64_t ballot(bool yes SBHAL_SITE) { return vendor::ballot(yes SBHAL_HERE); }
// Orders the wavefront's own reads and writes of memory.
SBHAL_INLINE void wave_sync(SBHAL_ONLY_SITE) { vendor::wave_sync(SBHAL_ONLY_HERE); }

// Sum and maximum over groups of `width` neighbouring lanes, a power of two up to 32 or the whole wavefront; every
// lane gets its group's.
template <int width = SBHAL_WAVE> SBHAL_INLINE float wave_sum(float v SBHAL_SITE) {
#pragma unroll
  for (int mask = width / 2; mask > 0; mask /= 2) v += shuffle_xor(v, mask SBHAL_HERE);
  return v;
}
template <int width = SBHAL_WAVE> SBHAL_INLINE float wave_max(float v SBHAL_SITE) {
#pragma unroll
  for (int mask = width / 2; mask > 0; mask /= 2) v = fmaxf(v, shuffle_xor(v, mask SBHAL_HERE));
  return v;
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
