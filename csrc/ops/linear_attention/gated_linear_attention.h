// Gated linear attention, what its kernels share on CPUs and GPUs: the sizes and the checks of the arguments.
#pragma once
#include "core/kernel.h"
#include "core/scalar.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

struct Sizes {
  int64_t batch, tokens, heads, group, K, V, sequences;
};

// q, k, v and g with their leading axes: [B, T, ...] or, of a decode step, [B, ...].
inline Sizes check_heads(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, int leading) {
  const char* axes = leading == 2 ? "B, T" : "B";
  if (q.ndim != leading + 2) fail(Error::value, "q has %d axes, expected [%s, Hq, K]", q.ndim, axes);
  if (k.ndim != leading + 2) fail(Error::value, "k has %d axes, expected [%s, H, K]", k.ndim, axes);
  if (v.ndim != leading + 2) fail(Error::value, "v has %d axes, expected [%s, H, V]", v.ndim, axes);
  check_float("q", q), check_float("g", g);
  check_dtype("k", k, q.dtype), check_dtype("v", v, q.dtype);
  if (g.dtype != DType::f32) check_dtype("g", g, q.dtype);
  const int64_t query_heads = q.shape[leading], heads = k.shape[leading];
  if (heads < 1 || query_heads < 1 || query_heads % heads)
    fail(Error::value, "q has %lld heads, expected a positive multiple of the %lld heads of k",
         static_cast<long long>(query_heads), static_cast<long long>(heads));
  int64_t sizes[4] = {q.shape[0], q.shape[1]};
  sizes[leading] = heads, sizes[leading + 1] = q.shape[leading + 1];
  check_shape("k", k, leading + 2, sizes);
  check_shape("g", g, g.ndim == leading + 1 ? leading + 1 : leading + 2, sizes);
  sizes[leading + 1] = v.shape[leading + 1];
  check_shape("v", v, leading + 2, sizes);
  check_innermost("q", q), check_innermost("k", k), check_innermost("v", v);
  if (g.ndim == leading + 2) check_innermost("g", g);
  return {sizes[0],
          leading == 2 ? sizes[1] : 1,
          heads,
          heads ? query_heads / heads : 1,
          q.shape[leading + 1],
          v.shape[leading + 1],
          sizes[0]};
}

inline Sizes check_inputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                          const Tensor& initial_state, const Tensor& cu_seqlens) {
  Sizes s = check_heads(q, k, v, g, 2);
  if (defined(cu_seqlens)) {
    check_index("cu_seqlens", cu_seqlens);
    if (s.batch != 1)
      fail(Error::value, "q has batch %lld, expected 1 with cu_seqlens", static_cast<long long>(s.batch));
    if (cu_seqlens.ndim != 1 || cu_seqlens.shape[0] < 1)
      fail(Error::value, "cu_seqlens must be one-dimensional with at least one entry");
    s.sequences = cu_seqlens.shape[0] - 1;
  }
  if (defined(initial_state)) {
    check_float("initial_state", initial_state);
    expect_shape("initial_state", initial_state, s.sequences, s.heads, s.K, s.V);
    check_innermost("initial_state", initial_state);
  }
  return s;
}

inline Sizes check_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                            const Tensor& initial_state, const Tensor& cu_seqlens, const Tensor& grad_o,
                            const Tensor& grad_final_state) {
  const Sizes s = check_inputs(q, k, v, g, initial_state, cu_seqlens);
  if (defined(grad_o)) {
    check_dtype("grad_o", grad_o, q.dtype);
    expect_shape("grad_o", grad_o, s.batch, s.tokens, q.shape[2], s.V);
    check_innermost("grad_o", grad_o);
  }
  if (defined(grad_final_state)) {
    check_dtype("grad_final_state", grad_final_state, DType::f32);
    expect_shape("grad_final_state", grad_final_state, s.sequences, s.heads, s.K, s.V);
    check_innermost("grad_final_state", grad_final_state);
  }
  return s;
}

SBHAL_ARGUMENTS(GatedLinearAttentionStep, Tensor q, k, v, g; InPlace state; Optional slots; double scale; Output o;)

inline Sizes check_step(const GatedLinearAttentionStep& a) {
  const Sizes s = check_heads(a.q, a.k, a.v, a.g, 1);
  const Tensor &state = a.state, &slots = a.slots;
  expect_shape("state", state, defined(slots) && state.ndim > 0 ? state.shape[0] : s.batch, s.heads, s.K, s.V);
  check_dtype("state", state, DType::f32);
  if (state.shape[3] > 1 && state.stride[3] != 1)  // a copy would be updated instead
    fail(Error::value, "state is written in place and has innermost stride %lld, expected 1",
         static_cast<long long>(state.stride[3]));
  if (defined(slots)) {
    check_index("slots", slots);
    expect_shape("slots", slots, s.batch);
  }
  return s;
}

// [B, ...] as [B, 1, ...].
inline Tensor with_time(const Tensor& x) {
  Tensor y = x;
  y.ndim = x.ndim + 1;
  for (int i = 1; i < x.ndim; ++i) y.shape[i + 1] = x.shape[i], y.stride[i + 1] = x.stride[i];
  y.shape[1] = 1, y.stride[1] = 0;
  return y;
}

// One sequence's batch row and tokens.
struct Sequence {
  int64_t batch, begin, end;
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
