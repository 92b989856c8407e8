// spike_quantize: spike_encode and back to activations, each row while it is in cache.
#include "spike_encode_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// A task has 16 rows, one after the other: a pass over the row for its threshold, one for its values, a vector at a
// time in registers. The row is in cache for the second; results larger than the cache all together go around it.
template <class T> void quantize_row(const T* x, int64_t width, float threshold, T* y, bool around_cache) {
  const vf t = set(threshold);
  for (int64_t i = 0; i < width; i += kLanes) {
    const vf value = to_count(load(x + i, width - i) / t) * t;
    if (around_cache && width - i >= kLanes)
      stream(y + i, value);
    else
      store(y + i, value, width - i);
  }
}

void launch(const SpikeQuantize& a, const Encoding& encoding, const Launch& launch) {
  const Rows rows = encoding.rows;
  with_float(a.x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    const bool around_cache = rows.count * rows.width * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
    parallel_for(ceil_div(rows.count, kRowsPerTask), launch.num_threads, [&](int64_t task, int) {
      const int64_t end = min(rows.count, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) {
        const T* data = static_cast<const T*>(a.x.data) + row * rows.stride;
        const float threshold = threshold_of<T>(mean_magnitude(data, rows.width), encoding.rule);
        quantize_row(data, rows.width, threshold, static_cast<T*>(a.y.data) + row * rows.width, around_cache);
      }
      stream_fence();
    });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_quantize, 1, SpikeQuantize)
