// What the CPU kernels of spike_encode and spike_quantize share: rows in tasks, and the mean that sets a threshold.
#pragma once
#include "core/cascade.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "spike_encode.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kStreamBytes = int64_t{32} << 20;  // results beyond this would only evict each other from the cache

// Lane sums over a stretch of at most kStretch values.
constexpr int64_t kStretch = 16 * 4 * kLanes;
template <class T> SBHAL_INLINE vf sum_stretch(const T* x, int64_t width) {
  vf partial[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) partial[u] += vabs(load(x + i + u * kLanes));
  for (; i < width; i += kLanes) partial[0] += vabs(load(x + i, width - i));
  return (partial[0] + partial[1]) + (partial[2] + partial[3]);
}

template <class T> float mean_magnitude(const T* x, int64_t width) {
  if (width == 0) return 0.0f;
  Cascade<vf> total;
  for (int64_t i = 0, count = 1; i < width; i += kStretch, ++count)
    total.add(sum_stretch(x + i, min(kStretch, width - i)), count);
  return sum(total.total()) / static_cast<float>(width);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
