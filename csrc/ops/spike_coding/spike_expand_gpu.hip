// spike_expand: integer counts to spike trains, one int8 plane a time step. Counts are read once and stay in registers.
// Whether they fit the coding is the caller's to know: a count that does not gives some spikes.
#include "spike_train_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

int64_t plan(const Tensor& counts, const char* coding, int64_t timesteps, const char* bit_order) {
  count_rows(counts, coding, timesteps, bit_order);
  return 0;
}

// A thread: `together` neighbouring counts, eight or one, in registers through all steps; it writes as many spikes of
// each plane of trains [steps][rows][width]. Threads share nothing: no barrier.
template <Coding coding, int together> __global__ void __launch_bounds__(kThreads)
    expand(const int16_t* counts, Rows rows, int64_t timesteps, bool msb_first, int8_t* trains) {
  const int64_t first = first_element<together>(), all = rows.count * rows.width;
  if (first >= all) return;
  const Pack<int16_t, together> given = load_pack<together>(counts + offset_of(rows, first));
  trains += first;
  for (int64_t step = 0; step < timesteps; ++step, trains += all) {
    const int32_t place = place_of<coding>(step, timesteps, msb_first);
    Pack<int8_t, together> spikes;
#pragma unroll
    for (int i = 0; i < together; ++i) spikes.at[i] = spike<coding>(given.at[i], place);
    store_pack(trains, spikes);
  }
}

void launch(const Tensor& counts, const char* coding, int64_t timesteps, const char* bit_order, const Tensor& trains,
            const Launch& launch) {
  const Rows rows = count_rows(counts, coding, timesteps, bit_order);
  const bool msb_first = is_msb_first(bit_order);
  const bool packs =
      in_packs(rows) && packs_at(counts, sizeof(int16_t), kTogether) && packs_at(trains, sizeof(int8_t), kTogether);
  with_coding(coding_of(coding), [&](auto constant) {
    constexpr Coding value = decltype(constant)::value;
    launch_kernel("spike_expand", packs ? expand<value, kTogether> : expand<value, 1>,
                  blocks_for(rows, packs ? kTogether : 1), kThreads, launch, static_cast<const int16_t*>(counts.data),
                  rows, timesteps, msb_first, static_cast<int8_t*>(trains.data));
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_expand, 1, plan, launch)
