// spike_linear and its gradient: the arguments that their kernels take, checked once for every device.
#pragma once
#include "ops/spike_coding/spike_rows.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kLeastGroup = 32;  // every group size is this times a power of two, up to kMostGroup
constexpr int kMostGroup = 128;  // so that a group's sum of 8-bit codes times any counts is far from overflow

struct Layer {
  Rows counts, thresholds;
  int64_t width, outputs, group, groups;  // groups of a row of weights
};

inline bool is_bytes(const Tensor& weight) { return weight.dtype == DType::i8; }

inline Layer layer_of(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
                      const Tensor& bias, int64_t group_size) {
  if (counts.ndim < 1) fail(Error::value, "counts has no axes, expected [..., K]");
  check_dtype("counts", counts, DType::i16);
  check_dtype("v_threshold", v_threshold, DType::f32);
  if (weight.dtype != DType::i8 && weight.dtype != DType::i16)
    fail(Error::type, "weight is %s, expected int8 or int16", dtype_name(weight.dtype));
  check_dtype("scales", scales, DType::f32);
  if (group_size != 32 && group_size != 64 && group_size != 128)
    fail(Error::value, "group_size is %lld, expected 32, 64 or 128", static_cast<long long>(group_size));
  if (weight.ndim != 2) fail(Error::value, "weight has %d axes, expected [N, K]", weight.ndim);

  const int64_t width = counts.shape[counts.ndim - 1], outputs = weight.shape[0];
  if (width % group_size != 0)
    fail(Error::value, "axis K of counts is %lld, expected a multiple of group_size, which is %lld",
         static_cast<long long>(width), static_cast<long long>(group_size));
  int64_t thresholds[kMaxDims];
  for (int i = 0; i < counts.ndim; ++i) thresholds[i] = i == counts.ndim - 1 ? 1 : counts.shape[i];
  check_shape("v_threshold", v_threshold, counts.ndim, thresholds);
  expect_shape("weight", weight, outputs, width);
  expect_shape("scales", scales, outputs, width / group_size);
  check_innermost("weight", weight);
  check_innermost("scales", scales);
  if (defined(bias)) {
    check_float("bias", bias);
    expect_shape("bias", bias, outputs);
    check_innermost("bias", bias);
  }
  return {rows_of("counts", counts), rows_of("v_threshold", v_threshold), width, outputs, group_size,
          width / group_size};
}

inline void check_out_dtype(const char* name) {
  if (!equal(name, "float32") && !equal(name, "bfloat16") && !equal(name, "float16"))
    fail(Error::value, "out_dtype is '%s', expected 'float32', 'bfloat16' or 'float16'", name);
}

// The gradient as rows; absent, it counts as zero.
inline Rows gradient_rows(const Tensor& grad_y, const Tensor& counts, const Layer& layer) {
  if (!defined(grad_y)) return {layer.counts.count, layer.outputs, layer.outputs};
  int64_t sizes[kMaxDims];
  for (int i = 0; i < counts.ndim; ++i) sizes[i] = i == counts.ndim - 1 ? layer.outputs : counts.shape[i];
  check_float("grad_y", grad_y);
  check_shape("grad_y", grad_y, counts.ndim, sizes);
  return rows_of("grad_y", grad_y);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
