// Rows of activations and their adaptive threshold: what spike_encode and spike_quantize share.
#pragma once
#include "core/kernel.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kStreamBytes = int64_t{32} << 20;  // results beyond this would only evict each other from the cache

struct Rows {
  int64_t count, width, stride;
};

// The axes from first_axis on as [rows, K]: all but the last must lie at one constant stride, or the bridge copies.
Rows rows_of(const char* name, const Tensor& t, int first_axis = 0) {
  Rows rows = {1, 1, 1};
  if (t.ndim <= first_axis) return rows;
  check_innermost(name, t);
  rows.width = rows.stride = t.shape[t.ndim - 1];
  int64_t expected = 0;
  for (int i = t.ndim - 2; i >= first_axis; --i) {
    if (t.shape[i] == 0) return {0, rows.width, rows.stride};
    if (t.shape[i] == 1) continue;
    if (rows.count > 1 && t.stride[i] != expected)
      fail(Error::stride, "%s has leading axes that do not fold into rows", name);
    if (rows.count == 1) rows.stride = t.stride[i];
    rows.count *= t.shape[i];
    expected = t.stride[i] * t.shape[i];
  }
  return rows;
}

struct Threshold {
  float k, low, high;
};

template <class T> float mean_magnitude(const T* x, int64_t width) {
  vf partial[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) partial[u] += vabs(load(x + i + u * kLanes));
  for (; i < width; i += kLanes) partial[0] += vabs(load(x + i, width - i));
  return sum((partial[0] + partial[1]) + (partial[2] + partial[3])) / static_cast<float>(width);
}

// NaN where the row holds one; an infinite mean is clamped like any other.
template <class T> float threshold_of(const T* x, int64_t width, const Threshold& rule, bool round_mean) {
  float mean = width ? mean_magnitude(x, width) : 0.0f;
  if (round_mean) mean = to_float(from_float<T>(mean));
  const float threshold = mean / rule.k;
  return threshold < rule.low ? rule.low : threshold > rule.high ? rule.high : threshold;
}

// Ties to even; saturates at +-32767, NaN gives 0.
SBHAL_INLINE vf to_count(vf ratio) {
  const vf limit = set(32767.0f);
  const vf clipped = select(ratio > limit, limit, select(ratio < -limit, -limit, ratio));
  return round_even(select(ratio == ratio, clipped, zero()));
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
