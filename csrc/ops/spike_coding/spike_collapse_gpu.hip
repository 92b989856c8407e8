// spike_collapse: spike trains back to integer counts, which grow in registers. Whether the spikes are the coding's and
// their counts fit int16 is the caller's to know: what does not gives some count.
#include "spike_train_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

int64_t plan(const Tensor& trains, const char* coding, const char* bit_order) {
  train_rows(trains, coding, bit_order);
  return 0;
}

// A thread: `together` neighbouring elements, eight or one, of all planes of trains [steps][rows][width]; their counts
// grow in registers and are written once. Threads share nothing: no barrier.
//
// `trains` is the step that begins a count, the others follow at `stride`.
template <Coding coding, int together> __global__ void __launch_bounds__(kThreads)
    collapse(const int8_t* trains, Rows rows, int64_t steps, int64_t stride, int16_t* counts) {
  const int64_t first = first_element<together>();
  if (first >= rows.count * rows.width) return;
  trains += offset_of(rows, first);
  int32_t grown[together];
  const Pack<int8_t, together> highest = load_pack<together>(trains);
#pragma unroll
  for (int i = 0; i < together; ++i) grown[i] = begin_count<coding>(highest.at[i]);
#pragma unroll 4
  for (int64_t step = 1; step < steps; ++step) {
    const Pack<int8_t, together> spikes = load_pack<together>(trains + step * stride);
#pragma unroll
    for (int i = 0; i < together; ++i) grown[i] = extend_count<coding>(grown[i], spikes.at[i]);
  }
  Pack<int16_t, together> results;
#pragma unroll
  for (int i = 0; i < together; ++i) results.at[i] = static_cast<int16_t>(grown[i]);
  store_pack(counts + first, results);
}

void launch(const Tensor& trains, const char* coding, const char* bit_order, const Tensor& counts,
            const Launch& launch) {
  const Rows rows = train_rows(trains, coding, bit_order);
  const int64_t steps = trains.shape[0], stride = trains.stride[0];
  const bool msb_first = is_msb_first(bit_order);
  const bool packs = in_packs(rows) && (steps == 1 || stride % kTogether == 0) &&
                     packs_at(trains, sizeof(int8_t), kTogether) && packs_at(counts, sizeof(int16_t), kTogether);
  const int8_t* start = static_cast<const int8_t*>(trains.data) + (msb_first ? 0 : (steps - 1) * stride);
  with_coding(coding_of(coding), [&](auto constant) {
    constexpr Coding value = decltype(constant)::value;
    launch_kernel("spike_collapse", packs ? collapse<value, kTogether> : collapse<value, 1>,
                  blocks_for(rows, packs ? kTogether : 1), kThreads, launch, start, rows, steps,
                  msb_first ? stride : -stride, static_cast<int16_t*>(counts.data));
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_collapse, 1, plan, launch)
