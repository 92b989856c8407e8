// lif_scan: what its forward and its backward share on every device: the neuron, one step of its membrane, and a scan
// as its arguments describe it.
#pragma once
#include "neurons.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

enum class Fire { at_threshold, above_threshold, floor, half_even };
enum class Reset { hard, soft, none };
enum class Surrogate {
  sigmoid,
  atan,
  fast_sigmoid,
  superspike,
  softsign,
  triangle,
  exponential,
  erf,
  rect,
  piecewise_linear,
  leaky_relu,
  straight_through,
  rect_count,
  periodic_exponential
};
constexpr const char* kSurrogateNames[] = {
    "sigmoid", "atan", "fast_sigmoid",     "superspike", "softsign",         "triangle",   "exponential",
    "erf",     "rect", "piecewise_linear", "leaky_relu", "straight_through", "rect_count", "periodic_exponential"};

constexpr const char* kResetNames[] = {"hard", "soft", "none"};
constexpr const char* kRoundingNames[] = {"floor", "half_even"};

struct Neuron {
  float decay, input_gain, v_rest, v_threshold, v_reset, v_min, max_count, alpha, beta;
  Fire fire;
  Reset reset;
  Surrogate surrogate;
  bool reset_next_step, detach_reset;
  SBHAL_BOTH bool counts() const { return fire == Fire::floor || fire == Fire::half_even; }
};

// ---- one step

SBHAL_INLINE vf fire(const Neuron& n, vf h, vf threshold) {
  if (n.fire == Fire::at_threshold) return select(h >= threshold, set(1.0f), zero());
  if (n.fire == Fire::above_threshold) return select(h > threshold, set(1.0f), zero());
  const vf ratio = h / threshold;
  vf count = round_even(ratio);
  if (n.fire == Fire::floor) count -= select(count > ratio, set(1.0f), zero());
  return select(count > zero(), vmin(count, set(n.max_count)), zero());  // NaN gives 0
}

SBHAL_INLINE vf reset_hard(const Neuron& n, vf v, vf spikes) { return select(spikes > zero(), set(n.v_reset), v); }
SBHAL_INLINE vf clamp_below(const Neuron& n, vf v) { return select(v < set(n.v_min), set(n.v_min), v); }

// h. `fired` is what the state v itself fires, used only where its reset has been left to this step. Every line holds
// one product and one sum, so all compilations contract it to the same bits.
SBHAL_INLINE vf charge(const Neuron& n, vf v, vf x, vf fired, vf decay, vf threshold) {
  if (n.reset_next_step && n.reset == Reset::hard) v = reset_hard(n, v, fired);
  const vf rest = set(n.v_rest);
  vf h = decay * (v - rest) + rest;
  h = set(n.input_gain) * x + h;
  if (n.reset_next_step && n.reset == Reset::soft) h = h - fired * threshold;
  return h;
}

// The state after the spikes, before the lower clamp.
SBHAL_INLINE vf settle(const Neuron& n, vf h, vf spikes, vf threshold) {
  if (n.reset_next_step || n.reset == Reset::none) return h;
  return n.reset == Reset::hard ? reset_hard(n, h, spikes) : h - spikes * threshold;
}

// ---- attributes

inline float finite(const char* name, double value) {
  const double largest = 3.4028234663852886e38;
  if (!(value >= -largest && value <= largest)) fail(Error::value, "%s is %g, expected a finite number", name, value);
  return static_cast<float>(value);
}

inline Fire fire_of(bool strict, int64_t max_count, bool to_even) {
  if (max_count < 1 || max_count > 256)
    fail(Error::value, "max_count is %lld, expected 1 to 256, the counts that every dtype of x holds exactly",
         static_cast<long long>(max_count));
  if (max_count == 1) return strict ? Fire::above_threshold : Fire::at_threshold;
  return to_even ? Fire::half_even : Fire::floor;
}

// Checks every attribute on the way.
inline Neuron neuron_of(bool scalar_threshold, double decay, double input_gain, double v_rest, double v_threshold,
                        const char* reset, double v_reset, bool reset_next_step, bool detach_reset, bool strict,
                        int64_t max_count, const char* count_rounding, double v_min, const char* surrogate,
                        double alpha, double beta) {
  Neuron n;
  n.decay = finite("decay", decay);
  n.input_gain = finite("input_gain", input_gain);
  n.v_rest = finite("v_rest", v_rest);
  n.v_threshold = finite("v_threshold", v_threshold);
  n.v_reset = finite("v_reset", v_reset);
  n.v_min = v_min == -__builtin_huge_val() ? -kInfinity : finite("v_min", v_min);
  n.alpha = finite("alpha", alpha);
  if (!(alpha >= 1e-30)) fail(Error::value, "alpha is %g, expected a positive number", alpha);
  n.beta = finite("beta", beta);
  n.reset = static_cast<Reset>(choice("reset", reset, kResetNames));
  n.fire = fire_of(strict, max_count, choice("count_rounding", count_rounding, kRoundingNames) == 1);
  n.max_count = static_cast<float>(max_count);
  n.surrogate = static_cast<Surrogate>(choice("surrogate", surrogate, kSurrogateNames));
  n.reset_next_step = reset_next_step;
  n.detach_reset = detach_reset;
  if (n.counts() && scalar_threshold && !(n.v_threshold > 0))
    fail(Error::value, "v_threshold is %g, expected a positive number where max_count is above 1", v_threshold);
  return n;
}

struct Scan {
  Neuron neuron;
  int64_t steps, neurons;
  Parameter start, decays, thresholds;
};

// Checks every tensor and attribute on the way.
inline Scan scan_of(const Tensor& x, const Tensor& v0, const Tensor& decay_tensor, const Tensor& v_threshold_tensor,
                    double decay, double input_gain, double v_rest, double v_threshold, const char* reset,
                    double v_reset, bool reset_next_step, bool detach_reset, bool strict, int64_t max_count,
                    const char* count_rounding, double v_min, const char* surrogate, double alpha, double beta) {
  if (x.ndim < 1) fail(Error::value, "x has no axes, expected [T, ...]");
  check_float("x", x);
  const Neuron n =
      neuron_of(!defined(v_threshold_tensor), decay, input_gain, v_rest, v_threshold, reset, v_reset, reset_next_step,
                detach_reset, strict, max_count, count_rounding, v_min, surrogate, alpha, beta);
  return {n,
          x.shape[0],
          lanes_of("x", x),
          {"v0", v0, x, n.v_rest},
          {"decay_tensor", decay_tensor, x, n.decay},
          {"v_threshold_tensor", v_threshold_tensor, x, n.v_threshold}};
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
