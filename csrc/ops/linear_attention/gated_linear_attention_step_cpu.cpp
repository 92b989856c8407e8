// gated_linear_attention_step_: one token for each row of a batch, on states in place; one pass over each state.
#include "gated_linear_attention_rows_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// One task's slice of the workspace, in floats.
struct Layout {
  int64_t k, decay, v, q, o, total;
};

Layout layout(const Sizes& s, const Tiling& columns, bool convert) {
  Layout at = {};
  const int64_t pitch = round_up(s.K, kLanes);
  at.k = reserve(&at.total, pitch);
  at.decay = reserve(&at.total, pitch);
  at.v = reserve(&at.total, columns.part_width());
  at.q = reserve(&at.total, convert ? s.group * pitch : 0);
  at.o = reserve(&at.total, convert ? s.group * columns.width : 0);
  return at;
}

struct StepPlan {
  Sizes size;
  Tiling columns;
  Layout at;
  int64_t scratch, workspace_bytes;  // what all tasks' slices take, and with the slots that have been seen
};

StepPlan plan(const GatedLinearAttentionStep& a) {
  StepPlan p = {};
  p.size = check_step(a);
  p.columns = tile(p.size.V, p.size.group, p.size.batch * p.size.heads);
  p.at = layout(p.size, p.columns, a.q.dtype != DType::f32);
  p.scratch = slots_of(p.size, p.columns) * p.at.total * 4;
  p.workspace_bytes = p.scratch + (defined(a.slots) ? ceil_div(a.state.shape[0], 8) : 0);
  return p;
}

// Every slot is -1 or names a state of its own. `seen` has a bit for every state.
void check_slots(const Tensor& slots, int64_t states, uint8_t* seen) {
  zero_bytes(seen, ceil_div(states, 8));
  for (int64_t b = 0; b < slots.shape[0]; ++b) {
    const int64_t slot = index_at(slots, b);
    if (slot < -1 || slot >= states)
      fail(Error::value, "slots[%lld] is %lld, expected -1 or an index below the %lld slots of state",
           static_cast<long long>(b), static_cast<long long>(slot), static_cast<long long>(states));
    if (slot < 0) continue;
    const int bit = 1 << slot % 8;
    if (seen[slot / 8] & bit)
      fail(Error::value, "slots[%lld] is %lld, the slot of an earlier row", static_cast<long long>(b),
           static_cast<long long>(slot));
    seen[slot / 8] = static_cast<uint8_t>(seen[slot / 8] | bit);
  }
}

struct Step {
  Sizes size;
  Tiling columns;
  Layout at;
  Tensor q, k, v, g, o;
  const Tensor& state;
  float scale;

  // A task has a part of the columns of one row's and head's state, which stays where it is: tiles [K][one or two
  // vectors] of it are advanced and written once, row by row. Its slice of the workspace holds k and decay [K], v
  // [the part's columns] and, unless they are float32, q [group][K] and o [group][width of a tile]. No two tasks share
  // columns of a state, and no two rows a slot.
  void run(int64_t b, int64_t slot, int64_t head, int64_t first, int64_t count, float* scratch) const {
    const Sequence here = {b, 0, 1};
    float *row = scratch + at.k, *decay = scratch + at.decay, *values = scratch + at.v;
    const HeadRows queries = stage_heads(size, q, here, 1, head, size.K, scratch + at.q);
    stage_rows<false>(k, here, 1, head, 0, size.K, row, 0);
    stage_rows<true>(g, here, 1, head, 0, size.K, decay, 0);
    stage_rows<false>(v, here, 1, head, first, count, values, 0);
    float* states = static_cast<float*>(state.data) + slot * state.stride[0] + head * state.stride[1] + first;
    for (int64_t j = 0; j < count; j += columns.width) {
      const int64_t width = min(columns.width, count - j), vectors = ceil_div(width, kLanes);
      const HeadRows out = output_heads(size, o, here, head, first + j, columns.width, scratch + at.o);
      const Pass pass = {size.K, states + j, states + j, state.stride[2], row,  values + j,
                         decay,  queries,    out,        width,           scale};
      if (width % kLanes)
        pass_group<false, State::memory_partial>(pass, 0, size.group, vectors);
      else
        pass_group<false, State::memory>(pass, 0, size.group, vectors);
      store_heads(size, o, here, 1, head, first + j, width, out);
    }
  }

  void skip(int64_t b, int64_t head, int64_t first, int64_t count) const {
    const int64_t bytes = o.dtype == DType::f32 ? 4 : 2;
    for (int64_t h = head * size.group; h < (head + 1) * size.group; ++h)
      zero_bytes(static_cast<char*>(o.data) + (b * o.stride[0] + h * o.stride[2] + first) * bytes, count * bytes);
  }
};

void launch(const GatedLinearAttentionStep& a, const StepPlan& plan, const Launch& launch) {
  const Sizes& s = plan.size;
  const Tiling& columns = plan.columns;
  if (defined(a.slots))
    check_slots(a.slots, a.state.shape[0], reinterpret_cast<uint8_t*>(launch.workspace + plan.scratch));
  float* workspace = reinterpret_cast<float*>(launch.workspace);
  const Step step = {s,
                     columns,
                     plan.at,
                     with_time(a.q),
                     with_time(a.k),
                     with_time(a.v),
                     with_time(a.g),
                     with_time(a.o),
                     a.state,
                     static_cast<float>(a.scale)};
  const int threads = static_cast<int>(min<int64_t>(launch.num_threads, slots_of(s, columns)));
  parallel_for(s.batch * s.heads * columns.parts, threads, [&](int64_t index, int thread) {
    const int64_t part = index % columns.parts, head = index / columns.parts % s.heads;
    const int64_t b = index / columns.parts / s.heads;
    const int64_t slot = defined(a.slots) ? index_at(a.slots, b) : b;
    if (slot < 0) return step.skip(b, head, columns.first(part), columns.count(part));
    step.run(b, slot, head, columns.first(part), columns.count(part), workspace + thread * plan.at.total);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(gated_linear_attention_step_, 1, GatedLinearAttentionStep)
