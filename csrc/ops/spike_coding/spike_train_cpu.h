// What the CPU kernels of spike_expand and spike_collapse share: the pieces of rows that threads work on, and the
// extremes that they see.
#pragma once
#include "core/parallel.h"
#include "spike_train.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kChunk = 4096;  // elements of a piece

// Extremes of all pieces: the same whichever comes first.
void reach_down(int32_t* lowest, int32_t value) {
  int32_t now = __atomic_load_n(lowest, __ATOMIC_RELAXED);
  while (value < now && !__atomic_compare_exchange_n(lowest, &now, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}
void reach_up(int32_t* highest, int32_t value) {
  int32_t now = __atomic_load_n(highest, __ATOMIC_RELAXED);
  while (value > now && !__atomic_compare_exchange_n(highest, &now, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// Calls f(row, begin, end) for pieces of about kChunk elements that cover every row.
template <class F> void parallel_pieces(const Rows& rows, int num_threads, const F& f) {
  if (rows.count == 0 || rows.width == 0) return;
  const int64_t per_row = ceil_div(rows.width, kChunk), rows_at_once = max<int64_t>(1, kChunk / rows.width);
  parallel_for(ceil_div(rows.count, rows_at_once) * per_row, num_threads, [&](int64_t task, int) {
    const int64_t first = task / per_row * rows_at_once, begin = task % per_row * kChunk;
    for (int64_t row = first; row < min(rows.count, first + rows_at_once); ++row)
      f(row, begin, min(rows.width, begin + kChunk));
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
