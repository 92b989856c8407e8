// A row's adaptive threshold and the counts under it: what spike_encode and spike_quantize share on every device.
#pragma once
#include "core/vf.h"
#include "spike_rows.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

inline Rows activation_rows(const Tensor& x) {
  if (x.ndim < 1) fail(Error::value, "x has no axes, expected [..., K]");
  check_float("x", x);
  return rows_of("x", x);
}

constexpr const char* kMeanDtypes[] = {"float32", "input"};

struct Threshold {
  float k, low, high;
  bool rounds_mean;  // to the dtype of x
};

inline Threshold threshold_rule(double k, double vth_min, double vth_max, const char* mean_dtype) {
  if (!(k >= 1e-30)) fail(Error::value, "k is %g, expected a positive number", k);
  if (!(vth_min >= 1e-38) || !(vth_max >= vth_min))
    fail(Error::value, "vth_min is %g and vth_max %g, expected 1e-38 <= vth_min <= vth_max", vth_min, vth_max);
  const bool rounds_mean = choice("mean_dtype", mean_dtype, kMeanDtypes) == 1;
  return {static_cast<float>(k), static_cast<float>(vth_min), static_cast<float>(vth_max), rounds_mean};
}

SBHAL_ARGUMENTS(SpikeEncode, Tensor x; double k, vth_min, vth_max; Text mean_dtype; Output counts, v_threshold;)
SBHAL_ARGUMENTS(SpikeQuantize, Tensor x; double k; Output y;)

// What a launch of either needs to know of its arguments.
struct Encoding {
  Rows rows;
  Threshold rule;
  int64_t workspace_bytes;
};

inline Encoding plan(const SpikeQuantize& a) {
  return {activation_rows(a.x), threshold_rule(a.k, 1e-5, 1e4, "float32"), 0};
}
inline Encoding plan(const SpikeEncode& a) {
  return {activation_rows(a.x), threshold_rule(a.k, a.vth_min, a.vth_max, a.mean_dtype), 0};
}

// From the mean of |x| over a row of T. NaN where the row holds one; an infinite mean is clamped like any other.
template <class T> SBHAL_INLINE float threshold_of(float mean, const Threshold& rule) {
  if (rule.rounds_mean) mean = to_float(from_float<T>(mean));
  const float threshold = mean / rule.k;
  return threshold < rule.low ? rule.low : threshold > rule.high ? rule.high : threshold;
}

// Ties to even; saturates at +-32767, NaN gives 0.
SBHAL_INLINE vf to_count(vf ratio) {
  const vf limit = set(32767.0f);
  const vf clipped = select(ratio > limit, limit, select(ratio < -limit, -limit, ratio));
  return round_even(select(ratio == ratio, clipped, zero()));
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
