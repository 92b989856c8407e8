// spike_collapse: spike trains back to integer counts. Everything is decoded twice, the first time to refuse what no
// int16 holds before a count is written.
#include "spike_train_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

int64_t plan(const Tensor& trains, const char* coding, const char* bit_order) {
  train_rows(trains, coding, bit_order);
  return 0;
}

struct Extremes {
  int32_t low, high;  // of the counts
  int32_t lowest_spike, highest_spike;
};

void extend(const int8_t* spikes, int64_t n, Extremes* seen) {
  int8_t low = 0, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = min(low, spikes[i]);
    high = max(high, spikes[i]);
  }
  seen->lowest_spike = min<int32_t>(seen->lowest_spike, low);
  seen->highest_spike = max<int32_t>(seen->highest_spike, high);
}

template <Coding coding> void add_step(const int8_t* spikes, int64_t n, bool first, int32_t* __restrict counts) {
  if (first)
    for (int64_t i = 0; i < n; ++i) counts[i] = begin_count<coding>(spikes[i]);
  else
    for (int64_t i = 0; i < n; ++i) counts[i] = extend_count<coding>(counts[i], spikes[i]);
}

// Decodes n elements, `spikes` being the first one's at step 0.
template <Coding coding>
Extremes decode(const int8_t* spikes, int64_t steps, int64_t stride, bool msb_first, int64_t n, int32_t* counts) {
  Extremes seen = {0, 0, 0, 0};
  for (int64_t step = 0; step < steps; ++step) {
    const int8_t* now = spikes + (msb_first ? step : steps - 1 - step) * stride;
    extend(now, n, &seen);
    add_step<coding>(now, n, step == 0, counts);
  }
  int32_t low = 0, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = min(low, counts[i]);
    high = max(high, counts[i]);
  }
  seen.low = low, seen.high = high;
  return seen;
}

void check_seen(const Extremes& seen, const char* coding) {
  const bool is_signed = equal(coding, "ternary") || equal(coding, "bitwise_signed");
  if (seen.highest_spike > 1 || seen.lowest_spike < (is_signed ? -1 : 0))
    fail(Error::value, "trains holds %d, coding '%s' has spikes %s",
         seen.highest_spike > 1 ? seen.highest_spike : seen.lowest_spike, coding,
         is_signed ? "-1, 0 and 1" : "0 and 1");
  if (seen.high > 32767 || seen.low < -32768)
    fail(Error::value, "trains hold a count %s, which int16 does not",
         seen.high > 32767 ? "above 32767" : "below -32768");
}

// A task has a piece of about kChunk elements; their counts, int32 [kChunk] on its stack, stay in L1 while one plane of
// the trains after the other is added. The extremes that all tasks reach in the first pass are compared and swapped
// atomically; parallel_for ends before they are read.
template <Coding coding> void collapse(const Tensor& trains, const Rows& rows, bool msb_first, const char* name,
                                       const Tensor& counts, int num_threads) {
  const auto piece = [&](int64_t row, int64_t begin, int64_t end, int32_t* decoded) {
    const int8_t* spikes = static_cast<const int8_t*>(trains.data) + row * rows.stride + begin;
    return decode<coding>(spikes, trains.shape[0], trains.stride[0], msb_first, end - begin, decoded);
  };
  Extremes all = {0, 0, 0, 0};
  parallel_pieces(rows, num_threads, [&](int64_t row, int64_t begin, int64_t end) {
    int32_t decoded[kChunk];
    const Extremes seen = piece(row, begin, end, decoded);
    reach_down(&all.low, seen.low);
    reach_up(&all.high, seen.high);
    reach_down(&all.lowest_spike, seen.lowest_spike);
    reach_up(&all.highest_spike, seen.highest_spike);
  });
  check_seen(all, name);
  parallel_pieces(rows, num_threads, [&](int64_t row, int64_t begin, int64_t end) {
    int32_t decoded[kChunk];
    piece(row, begin, end, decoded);
    int16_t* out = static_cast<int16_t*>(counts.data) + row * rows.width;
    for (int64_t i = begin; i < end; ++i) out[i] = static_cast<int16_t>(decoded[i - begin]);
  });
}

void launch(const Tensor& trains, const char* coding, const char* bit_order, const Tensor& counts,
            const Launch& launch) {
  const Rows rows = train_rows(trains, coding, bit_order);
  const bool msb_first = is_msb_first(bit_order);
  with_coding(coding_of(coding), [&](auto constant) {
    collapse<constant.value>(trains, rows, msb_first, coding, counts, launch.num_threads);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_collapse, 1, plan, launch)
