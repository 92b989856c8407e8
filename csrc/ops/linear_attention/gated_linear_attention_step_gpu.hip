// gated_linear_attention_step_: one token for each row of a batch, on states in place. As fast as the states can be
// read and written: small tiles of columns give even a single row enough blocks to keep the memory busy.
#include "gated_linear_attention_recurrence_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

struct Step {
  Tensor q, k, v, g, state, slots, o;  // the first four and o with a time axis of one token
  Sizes size;
  float scale;
  bool aligned;  // rows of the state start on 16 bytes
};

// A block: one row of the batch, one key/value head, 32 columns of its state, advanced in place by one token as the
// picture above Token has it. Whether there is a state is one answer for the block: all threads meet at the barriers.
template <class T> __global__ void __launch_bounds__(kTokenThreads) step_kernel(Step p) {
  const int64_t parts = ceil_div(p.size.V, kTokenColumns), part = blockIdx.x % parts;
  const int64_t head = blockIdx.x / parts % p.size.heads, b = blockIdx.x / parts / p.size.heads;
  const int column = static_cast<int>(part) * kTokenColumns;
  const int columns = min(static_cast<int>(p.size.V) - column, kTokenColumns);
  const Token<T> token = {p.q, p.k, p.v, p.g, p.o, b, 0, head, static_cast<int>(p.size.group), column, p.scale};
  const int64_t slot = defined(p.slots) ? index_at(p.slots, b) : b;
  if (slot < 0 || slot >= p.state.shape[0]) {
    token.skip(columns);
  } else {
    float* const data =
        static_cast<float*>(p.state.data) + slot * p.state.stride[0] + head * p.state.stride[1] + column;
    const StateColumns state = {data, p.state.stride[2], static_cast<int>(p.size.K), columns, p.aligned};
    token.advance(state);
  }
}

struct StepPlan {
  Sizes size;
  int64_t workspace_bytes;
};

StepPlan plan(const GatedLinearAttentionStep& a) { return {check_step(a), 0}; }

void launch(const GatedLinearAttentionStep& a, const StepPlan& plan, const Launch& launch) {
  const Sizes& s = plan.size;
  const Step step = {with_time(a.q),
                     with_time(a.k),
                     with_time(a.v),
                     with_time(a.g),
                     a.state,
                     a.slots,
                     with_time(a.o),
                     s,
                     static_cast<float>(a.scale),
                     rows_aligned(a.state, sizeof(float))};
  with_float(a.q.dtype, [&](auto* type) {
    launch_kernel("gated_linear_attention_step_", step_kernel<typename ElementOf<decltype(type)>::type>,
                  s.batch * s.heads * ceil_div(s.V, kTokenColumns), kTokenThreads, launch, step);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(gated_linear_attention_step_, 1, GatedLinearAttentionStep)
