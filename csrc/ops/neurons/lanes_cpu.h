// Scans over the first axis of [T, ...] tensors on a CPU, a block of neurons at a time.
#pragma once
#include "core/parallel.h"
#include "core/simd.h"
#include "neurons.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kBlock = 8 * kLanes;  // neurons scanned together: eight independent chains hide a step's latency
constexpr int64_t kStreamBytes = int64_t{32} << 20;  // results beyond this would only evict each other from the cache

// The values of `count` neurons from `first` on. The parameter is a copy, so that no store can seem to change it.
inline void fill(float* out, const Parameter p, int64_t first, int64_t count) {
  if (!p.given()) {
    for (int64_t i = 0; i < count; ++i) out[i] = p.otherwise;
    return;
  }
  with_parameter(p.dtype, [&](auto* type) {
    const auto* data = static_cast<const typename ElementOf<decltype(type)>::type*>(p.data);
    int64_t channel = first / p.inner % p.channels, left = p.inner - first % p.inner;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = to_float(data[channel * p.step]);
      if (--left > 0) continue;
      left = p.inner;
      if (++channel == p.channels) channel = 0;
    }
  });
}

// Rows are written around the cache where the whole result is larger than it.
template <class T> SBHAL_INLINE void put(T* p, vf v, int64_t n, bool around_cache) {
  if (n < kLanes)
    store(p, v, n);
  else if (around_cache)
    stream(p, v);
  else
    store(p, v);
}

inline Tasks blocks_of(int64_t neurons) { return {neurons, kBlock, 16}; }

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
