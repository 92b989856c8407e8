// spike_encode: one threshold a row, then integer counts. Two passes over a row, the second from cache.
#include "spike_encode_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

typedef int16_t vs __attribute__((vector_size(2 * kLanes), may_alias));
typedef int16_t vs_unaligned __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

// A task has 16 rows, one after the other: a pass over the row for its threshold, one for its counts, a vector at a
// time in registers. The row is in cache for the second; results larger than the cache all together go around it.
template <class T> void encode_row(const T* x, int64_t width, float threshold, int16_t* counts, bool around_cache) {
  const vf t = set(threshold);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const vs count = __builtin_convertvector(to_int(to_count(load(x + i) / t)), vs);
    if (around_cache)
      stream_half(counts + i, reinterpret_cast<vh>(count));
    else
      *reinterpret_cast<vs_unaligned*>(counts + i) = count;
  }
  if (i < width) {
    const vi last = to_int(to_count(load(x + i, width - i) / t));
    for (int64_t j = i; j < width; ++j) counts[j] = static_cast<int16_t>(last[j - i]);
  }
}

void launch(const SpikeEncode& a, const Encoding& encoding, const Launch& launch) {
  const Rows rows = encoding.rows;
  const bool around_cache = rows.count * rows.width * static_cast<int64_t>(sizeof(int16_t)) > kStreamBytes;
  with_float(a.x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    parallel_for(ceil_div(rows.count, kRowsPerTask), launch.num_threads, [&](int64_t task, int) {
      const int64_t end = min(rows.count, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) {
        const T* data = static_cast<const T*>(a.x.data) + row * rows.stride;
        const float threshold = threshold_of<T>(mean_magnitude(data, rows.width), encoding.rule);
        static_cast<float*>(a.v_threshold.data)[row] = threshold;
        encode_row(data, rows.width, threshold, static_cast<int16_t*>(a.counts.data) + row * rows.width, around_cache);
      }
      stream_fence();
    });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_encode, 1, SpikeEncode)
