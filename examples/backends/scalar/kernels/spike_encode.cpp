// spike_encode: a threshold for each row, then the row as counts of it. The operator's own header has its plan.
#include "ops/spike_coding/spike_encode.h"

#include <cmath>

#include "core/parallel.h"
#include "core/simd.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr float kMostCounts = 32767.0f;

template <class T> float row_threshold(const T* x, int64_t width, const Threshold& rule) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += std::fabs(to_float(x[i]));
  float mean = width ? static_cast<float>(sum / static_cast<double>(width)) : 0.0f;
  if (rule.rounds_mean) mean = to_float(from_float<T>(mean));
  return min(max(mean / rule.k, rule.low), rule.high);
}

template <class T> void encode_row(const T* x, int64_t width, float threshold, int16_t* counts) {
  for (int64_t i = 0; i < width; ++i) {
    const float ratio = to_float(x[i]) / threshold;
    const float count = std::nearbyint(min(max(ratio, -kMostCounts), kMostCounts));
    counts[i] = ratio == ratio ? static_cast<int16_t>(count) : int16_t{0};
  }
}

void launch(const SpikeEncode& a, const Encoding& encoding, const Launch& launch) {
  const Rows rows = encoding.rows;
  with_float(a.x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    parallel_for(rows.count, launch.num_threads, [&](int64_t row, int) {
      const T* data = static_cast<const T*>(a.x.data) + row * rows.stride;
      const float threshold = row_threshold(data, rows.width, encoding.rule);
      static_cast<float*>(a.v_threshold.data)[row] = threshold;
      encode_row(data, rows.width, threshold, static_cast<int16_t*>(a.counts.data) + row * rows.width);
    });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_encode, 1, SpikeEncode)
