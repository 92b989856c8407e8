// Derivatives of one step of lif_scan: of the spikes, by the surrogates that stand in for the step function, and of the
// reset and the lower clamp.
#pragma once
#include "lif_scan.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// Derivatives of the spikes by h. A single spike sees u = h - threshold; a count is a function of r = h / threshold and
// sees u = r - 1, with everything in units of the threshold. derivative(u, p, unit): p = u + unit is the potential.
template <class F> SBHAL_INLINE void slopes(const Neuron n, const float* h, const float* threshold, float* slope,
                                            int64_t lanes, const F& derivative) {
  for (int64_t i = 0; i < lanes; i += kLanes) {
    const vf p = load(h + i), unit = load(threshold + i), one = set(1.0f);
    if (n.counts()) {
      const vf ratio = p / unit;
      store(slope + i, derivative(ratio - one, ratio, one) / unit);
    } else {
      store(slope + i, derivative(p - unit, p, unit));
    }
  }
}

__attribute__((noinline)) void surrogate_slopes(const Neuron& n, const float* h, const float* threshold, float* slope,
                                                int64_t lanes) {
  const vf a = set(n.alpha), b = set(n.beta), one = set(1.0f);
  const auto apply = [&](const auto& derivative) { slopes(n, h, threshold, slope, lanes, derivative); };
  switch (n.surrogate) {
    case Surrogate::sigmoid:
      return apply([&](vf u, vf, vf) {
        const vf e = exp2(-vabs(a * set(1.44269504f) * u)), z = one + e;  // s(1 - s) cancels where s is near 1
        return a * e / (z * z);
      });
    case Surrogate::atan:
      return apply([&](vf u, vf, vf) {
        const vf z = set(1.57079633f) * a * u;
        return set(0.5f) * a / (one + z * z);
      });
    case Surrogate::fast_sigmoid:
      return apply([&](vf u, vf, vf) {
        const vf z = one + a * vabs(u);
        return one / (z * z);
      });
    case Surrogate::superspike:
      return apply([&](vf u, vf, vf) {
        const vf z = vabs(u) + one;
        return a / (z * z);
      });
    case Surrogate::softsign:
      return apply([&](vf u, vf, vf) {
        const vf z = one / a + vabs(u);
        return one / (set(2.0f) * a * z * z);
      });
    case Surrogate::triangle:
      return apply([&](vf u, vf, vf) {
        const vf z = a - a * a * vabs(u);
        return select(z < zero(), zero(), z);
      });
    case Surrogate::exponential: return apply([&](vf u, vf, vf) { return set(0.5f) * a * exp(-a * vabs(u)); });
    case Surrogate::erf:
      return apply([&](vf u, vf, vf) {
        const vf z = a * u;
        return set(0.564189584f) * a * exp(-(z * z));  // 1 / sqrt(pi)
      });
    case Surrogate::rect: return apply([&](vf u, vf, vf) { return select(vabs(u) < set(0.5f) / a, a, zero()); });
    case Surrogate::piecewise_linear: return apply([&](vf u, vf, vf) { return select(vabs(u) < a, set(0.5f) / a, b); });
    case Surrogate::leaky_relu: return apply([&](vf u, vf, vf) { return select(u >= zero(), a, b); });
    case Surrogate::straight_through: return apply([&](vf, vf, vf) { return one; });
    case Surrogate::rect_count:
      return apply([&](vf, vf p, vf unit) {
        return select(p >= zero(), select(p <= set(n.max_count) * unit, one, zero()), zero());
      });
    case Surrogate::periodic_exponential:
      return apply([&](vf, vf p, vf unit) {
        const vf nearest = round_even(p / unit);
        return set(0.5f) * a * exp(-a * vabs(p - select(nearest < one, one, nearest) * unit));
      });
  }
}

// Derivative of the spikes by the threshold, from that by h.
SBHAL_INLINE vf slope_by_threshold(const Neuron& n, vf h, vf threshold, vf slope) {
  return n.counts() ? -slope * h / threshold : -slope;
}

// Derivatives of a reset of v that fired `spikes`: by v it is keep + through * (spikes by v), by the threshold
// threshold + through * (spikes by threshold).
struct ResetSlopes {
  vf keep, through, threshold;
};
SBHAL_INLINE ResetSlopes reset_slopes(const Neuron& n, vf v, vf spikes, vf threshold) {
  const vf one = set(1.0f);
  if (n.reset == Reset::none) return {one, zero(), zero()};
  if (n.reset == Reset::soft) return {one, n.detach_reset ? zero() : -threshold, -spikes};
  return {select(spikes > zero(), zero(), one), n.detach_reset ? zero() : set(n.v_reset) - v, zero()};
}

SBHAL_INLINE vf where_unclamped(const Neuron& n, vf v, vf grad) {
  return n.v_min > -kInfinity ? select(v > set(n.v_min), grad, zero()) : grad;
}

// One step as it went: `before` is the state handed to it, which fired `fired`.
struct Point {
  vf h, before, spikes, fired, slope, slope_before, decay, threshold;
};
// Gradients with respect to h, the state before and the step's own decay and threshold.
struct Gradients {
  vf h, before, decay, threshold;
};

// Where the reset belongs to the step itself.
SBHAL_INLINE Gradients step_back(const Neuron& n, const Point& p, vf grad_spikes, vf grad_v) {
  const ResetSlopes reset = reset_slopes(n, p.h, p.spikes, p.threshold);
  grad_v = where_unclamped(n, settle(n, p.h, p.spikes, p.threshold), grad_v);
  const vf by_spikes = grad_spikes + grad_v * reset.through;
  const vf grad_h = by_spikes * p.slope + grad_v * reset.keep;
  return {grad_h, p.decay * grad_h, grad_h * (p.before - set(n.v_rest)),
          by_spikes * slope_by_threshold(n, p.h, p.threshold, p.slope) + grad_v * reset.threshold};
}

// Where the reset of the state before is the first thing the step does. A soft one comes after the decay.
SBHAL_INLINE Gradients step_back_delayed(const Neuron& n, const Point& p, vf grad_spikes, vf grad_v) {
  const ResetSlopes reset = reset_slopes(n, p.before, p.fired, p.threshold);
  const vf grad_h = grad_spikes * p.slope + where_unclamped(n, p.h, grad_v);
  const vf by_fired = grad_h * reset.through * (n.reset == Reset::soft ? set(1.0f) : p.decay);
  const vf after = n.reset == Reset::hard ? reset_hard(n, p.before, p.fired) : p.before;
  return {grad_h, by_fired * p.slope_before + p.decay * grad_h * reset.keep, grad_h * (after - set(n.v_rest)),
          grad_spikes * slope_by_threshold(n, p.h, p.threshold, p.slope) +
              by_fired * slope_by_threshold(n, p.before, p.threshold, p.slope_before) + grad_h * reset.threshold};
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
