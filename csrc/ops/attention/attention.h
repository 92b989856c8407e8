// What the kernels of attention and its backward share on CPUs and GPUs: the sizes and the checks of the arguments.
#pragma once
#include "attention_mask.h"
#include "core/kernel.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr double kLog2e = 1.4426950408889634;  // scores are exponents of 2
constexpr float kLn2 = 0.693147181f;

inline void check_input(const char* name, const Tensor& t, const Tensor& q) {
  if (t.ndim != 4) fail(Error::value, "%s has %d axes, expected 4: [batch, time, heads, head size]", name, t.ndim);
  check_float(name, t);
  if (t.dtype != q.dtype)
    fail(Error::type, "%s is %s and q is %s, expected one dtype", name, dtype_name(t.dtype), dtype_name(q.dtype));
  check_innermost(name, t);
}

inline void check_ragged(const Shape& s, const Tensor& cu_q, const Tensor& cu_k, const Tensor& kv_lengths) {
  if (defined(cu_q) != defined(cu_k)) fail(Error::value, "cu_seqlens_q and cu_seqlens_k must be given together");
  if (defined(kv_lengths)) {
    if (s.ragged) fail(Error::value, "kv_lengths cannot be given together with cu_seqlens_k");
    check_index("kv_lengths", kv_lengths);
    expect_shape("kv_lengths", kv_lengths, s.batch);
  }
  if (!s.ragged) return;
  check_index("cu_seqlens_q", cu_q);
  check_index("cu_seqlens_k", cu_k);
  if (s.batch != 1) fail(Error::value, "cu_seqlens_q needs a batch of 1, got %lld", static_cast<long long>(s.batch));
  if (cu_q.ndim != 1 || cu_q.shape[0] < 1)
    fail(Error::value, "cu_seqlens_q must be one-dimensional with at least one entry");
  expect_shape("cu_seqlens_k", cu_k, s.sequences + 1);
}

inline Shape shape_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
                      const Tensor& kv_lengths, bool causal, int64_t window, int64_t sinks) {
  check_input("q", q, q);
  check_input("k", k, q);
  check_input("v", v, q);
  Shape s = {q.shape[0], q.shape[1], k.shape[1], k.shape[2], 1, q.shape[3], v.shape[3], q.shape[0], defined(cu_q)};
  expect_shape("k", k, s.batch, s.keys, s.heads, s.depth);
  expect_shape("v", v, s.batch, s.keys, s.heads, s.width);
  const int64_t query_heads = q.shape[2];
  if (s.heads < 1 || query_heads < 1 || query_heads % s.heads)
    fail(Error::value, "q has %lld heads and k %lld, expected a positive multiple", static_cast<long long>(query_heads),
         static_cast<long long>(s.heads));
  s.group = query_heads / s.heads;
  if (s.ragged && cu_q.ndim == 1) s.sequences = cu_q.shape[0] - 1;
  check_ragged(s, cu_q, cu_k, kv_lengths);
  if (window < 0) fail(Error::value, "window is %lld, expected 0 (none) or more", static_cast<long long>(window));
  if (window > 0 && !causal) fail(Error::value, "window needs causal=True");
  if (sinks < 0) fail(Error::value, "sinks is %lld, expected 0 or more", static_cast<long long>(sinks));
  return s;
}

inline void check_output(const char* name, const Tensor& t, const Tensor& q, const Shape& s) {
  check_input(name, t, q);
  expect_shape(name, t, s.batch, s.queries, s.heads * s.group, s.width);
}

inline void check_lse(const char* name, const Tensor& t, const Shape& s) {
  expect_shape(name, t, s.batch, s.heads * s.group, s.queries);
  check_dtype(name, t, DType::f32);
}

SBHAL_BOTH float lse_at(const Tensor& t, int64_t b, int64_t h, int64_t i) {
  return static_cast<const float*>(t.data)[b * t.stride[0] + h * t.stride[1] + i * t.stride[2]];
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
