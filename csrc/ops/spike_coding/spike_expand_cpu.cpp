// spike_expand: integer counts to spike trains, one int8 plane a time step.
#include "spike_train_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// The counts that `steps` steps of a coding can hold.
struct Range {
  int32_t low, high;
};
Range range_of(Coding coding, int64_t steps) {
  const int32_t bits = static_cast<int32_t>(min<int64_t>(steps, 17)),
                most = static_cast<int32_t>(min<int64_t>(steps, 32768));
  switch (coding) {
    case Coding::binary: return {0, most};
    case Coding::ternary: return {-most, most};
    case Coding::bitwise: return {0, (1 << bits) - 1};
    case Coding::bitwise_signed: return {1 - (1 << bits), (1 << bits) - 1};
    case Coding::twos_complement: break;
  }
  return {-(1 << (bits - 1)), (1 << (bits - 1)) - 1};
}

int64_t plan(const Tensor& counts, const char* coding, int64_t timesteps, const char* bit_order) {
  count_rows(counts, coding, timesteps, bit_order);
  return 0;
}

void check_counts(const Tensor& counts, const Rows& rows, const char* coding, int64_t timesteps, int num_threads) {
  const Range range = range_of(coding_of(coding), timesteps);
  int32_t lowest = 0, highest = 0;
  parallel_pieces(rows, num_threads, [&](int64_t row, int64_t begin, int64_t end) {
    const int16_t* c = static_cast<const int16_t*>(counts.data) + row * rows.stride;
    int16_t low = 0, high = 0;
    for (int64_t i = begin; i < end; ++i) low = min(low, c[i]), high = max(high, c[i]);
    reach_down(&lowest, low);
    reach_up(&highest, high);
  });
  if (lowest >= range.low && highest <= range.high) return;
  fail(Error::value, "counts holds %d, coding '%s' with timesteps=%lld holds %d to %d",
       lowest < range.low ? lowest : highest, coding, static_cast<long long>(timesteps), range.low, range.high);
}

// A task has a piece of about kChunk counts, which stays in L1 while one plane of the trains after the other is written
// from it. The pass before this one, over the same pieces, has refused what the coding cannot hold.
template <Coding coding> void expand(const Tensor& counts, const Rows& rows, int64_t timesteps, bool msb_first,
                                     const Tensor& trains, int num_threads) {
  parallel_pieces(rows, num_threads, [&](int64_t row, int64_t begin, int64_t end) {
    const int16_t* c = static_cast<const int16_t*>(counts.data) + row * rows.stride;
    int8_t* out = static_cast<int8_t*>(trains.data) + row * rows.width;
    for (int64_t step = 0; step < timesteps; ++step, out += rows.count * rows.width) {
      const int32_t place = place_of<coding>(step, timesteps, msb_first);
      for (int64_t i = begin; i < end; ++i) out[i] = spike<coding>(c[i], place);
    }
  });
}

void launch(const Tensor& counts, const char* coding, int64_t timesteps, const char* bit_order, const Tensor& trains,
            const Launch& launch) {
  const Rows rows = count_rows(counts, coding, timesteps, bit_order);
  const bool msb_first = is_msb_first(bit_order);
  check_counts(counts, rows, coding, timesteps, launch.num_threads);
  with_coding(coding_of(coding), [&](auto constant) {
    expand<constant.value>(counts, rows, timesteps, msb_first, trains, launch.num_threads);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_expand, 1, plan, launch)
