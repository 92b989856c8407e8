// Scans over the first axis of [T, ...] tensors on a CPU, a block of neurons at a time.
#pragma once
#include "neurons.h"
#include "simd.h"

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

// Tasks of several blocks, so that small problems still fill the threads and large ones pay little for scheduling.
struct Blocks {
  int64_t count, per_task, tasks;
  explicit Blocks(int64_t lanes)
      : count(ceil_div(lanes, kBlock)),
        per_task(max<int64_t>(1, min<int64_t>(16, count / 256))),
        tasks(ceil_div(count, per_task)) {}
  int64_t begin(int64_t task) const { return task * per_task * kBlock; }
  int64_t end(int64_t task, int64_t lanes) const { return min(lanes, begin(task + 1)); }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
