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

struct Threshold {
  float k, low, high;
  bool rounds_mean;  // to the dtype of x
};

inline Threshold threshold_rule(double k, double vth_min, double vth_max, const char* mean_dtype) {
  if (!(k >= 1e-30)) fail(Error::value, "k is %g, expected a positive number", k);
  if (!(vth_min >= 1e-38) || !(vth_max >= vth_min))
    fail(Error::value, "vth_min is %g and vth_max %g, expected 1e-38 <= vth_min <= vth_max", vth_min, vth_max);
  if (!equal(mean_dtype, "float32") && !equal(mean_dtype, "input"))
    fail(Error::value, "mean_dtype is '%s', expected 'float32' or 'input'", mean_dtype);
  return {static_cast<float>(k), static_cast<float>(vth_min), static_cast<float>(vth_max), equal(mean_dtype, "input")};
}
inline Threshold threshold_rule(double k) { return threshold_rule(k, 1e-5, 1e4, "float32"); }

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
