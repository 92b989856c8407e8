// Derivatives of one step of lif_scan: of the spikes, by the surrogates that stand in for the step function, and of the
// reset and the lower clamp.
#pragma once
#include "lif_scan.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// What lif_scan_backward is given besides the scan.
inline void check_gradients(const Tensor& x, const Tensor& spikes, const Tensor& grad_spikes, const Tensor& grad_v) {
  const auto check = [&](const char* name, const Tensor& t, DType dtype) {
    check_dtype(name, t, dtype);
    check_shape(name, t, x.ndim, x.shape);
    lanes_of(name, t);
  };
  check("spikes", spikes, x.dtype);
  if (defined(grad_spikes)) check("grad_spikes", grad_spikes, x.dtype);
  if (defined(grad_v)) check("grad_v", grad_v, DType::f32);
}
inline Parameter last_gradient(const Tensor& grad_v_final, const Tensor& x) {
  if (defined(grad_v_final)) check_dtype("grad_v_final", grad_v_final, DType::f32);
  return {"grad_v_final", grad_v_final, x, 0.0f};
}

// Calls f with the surrogate: derivative(u, p, unit) is that of the spikes by h. A single spike sees the potential p =
// h and u = p - threshold; a count is a function of p = h / threshold and sees u = p - 1, with everything in units of
// the threshold, the result too. p = u + unit.
template <class F> SBHAL_INLINE void with_surrogate(const Neuron& n, const F& f) {
  const vf a = set(n.alpha), b = set(n.beta), one = set(1.0f);
  switch (n.surrogate) {
    case Surrogate::sigmoid:
      return f([&](vf u, vf, vf) {
        const vf e = exp2(-vabs(a * set(1.44269504f) * u)), z = one + e;  // s(1 - s) cancels where s is near 1
        return a * e / (z * z);
      });
    case Surrogate::atan:
      return f([&](vf u, vf, vf) {
        const vf z = set(1.57079633f) * a * u;
        return set(0.5f) * a / (one + z * z);
      });
    case Surrogate::fast_sigmoid:
      return f([&](vf u, vf, vf) {
        const vf z = one + a * vabs(u);
        return one / (z * z);
      });
    case Surrogate::superspike:
      return f([&](vf u, vf, vf) {
        const vf z = vabs(u) + one;
        return a / (z * z);
      });
    case Surrogate::softsign:
      return f([&](vf u, vf, vf) {
        const vf z = one / a + vabs(u);
        return one / (set(2.0f) * a * z * z);
      });
    case Surrogate::triangle:
      return f([&](vf u, vf, vf) {
        const vf z = a - a * a * vabs(u);
        return select(z < zero(), zero(), z);
      });
    case Surrogate::exponential: return f([&](vf u, vf, vf) { return set(0.5f) * a * exp(-a * vabs(u)); });
    case Surrogate::erf:
      return f([&](vf u, vf, vf) {
        const vf z = a * u;
        return set(0.564189584f) * a * exp(-(z * z));  // 1 / sqrt(pi)
      });
    case Surrogate::rect: return f([&](vf u, vf, vf) { return select(vabs(u) < set(0.5f) / a, a, zero()); });
    case Surrogate::piecewise_linear: return f([&](vf u, vf, vf) { return select(vabs(u) < a, set(0.5f) / a, b); });
    case Surrogate::leaky_relu: return f([&](vf u, vf, vf) { return select(u >= zero(), a, b); });
    case Surrogate::straight_through: return f([&](vf, vf, vf) { return one; });
    case Surrogate::rect_count:
      return f([&](vf, vf p, vf unit) {
        return select(p >= zero(), select(p <= set(n.max_count) * unit, one, zero()), zero());
      });
    case Surrogate::periodic_exponential:
      return f([&](vf, vf p, vf unit) {
        const vf nearest = round_even(p / unit);
        return set(0.5f) * a * exp(-a * vabs(p - select(nearest < one, one, nearest) * unit));
      });
  }
}

// Derivative of the spikes by the threshold, from that by h.
SBHAL_INLINE vf slope_by_threshold(const Neuron& n, vf h, vf threshold, vf slope) {
  return n.counts() ? -slope * h / threshold : -slope;
}

// Of a gradient with respect to the state that a reset leaves: what reaches the state v it was applied to, what the
// spikes, and what the threshold directly. Where nothing does it is 0, whatever the gradient is.
SBHAL_INLINE vf past_reset(const Neuron& n, vf spikes, vf grad) {
  return n.reset == Reset::hard ? select(spikes > zero(), zero(), grad) : grad;
}
SBHAL_BOTH bool differentiates_reset(const Neuron& n) { return n.reset != Reset::none && !n.detach_reset; }
SBHAL_INLINE vf reset_by_spikes(const Neuron& n, vf v, vf threshold, vf grad) {
  if (!differentiates_reset(n)) return zero();
  return grad * (n.reset == Reset::soft ? -threshold : set(n.v_reset) - v);
}
SBHAL_INLINE vf reset_by_threshold(const Neuron& n, vf spikes, vf grad) {
  return n.reset == Reset::soft ? -spikes * grad : zero();
}

SBHAL_INLINE vf where_unclamped(const Neuron& n, vf v, vf grad) {
  return n.v_min > -kInfinity ? select(v <= set(n.v_min), zero(), grad) : grad;  // NaN is not clamped
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
  grad_v = where_unclamped(n, settle(n, p.h, p.spikes, p.threshold), grad_v);
  const vf by_spikes = grad_spikes + reset_by_spikes(n, p.h, p.threshold, grad_v);
  const vf grad_h = by_spikes * p.slope + past_reset(n, p.spikes, grad_v);
  return {grad_h, p.decay * grad_h, grad_h * (p.before - set(n.v_rest)),
          by_spikes * slope_by_threshold(n, p.h, p.threshold, p.slope) + reset_by_threshold(n, p.spikes, grad_v)};
}

// Where the reset of the state before is the first thing the step does. A soft one comes after the decay.
SBHAL_INLINE Gradients step_back_delayed(const Neuron& n, const Point& p, vf grad_spikes, vf grad_v) {
  const vf grad_h = grad_spikes * p.slope + where_unclamped(n, p.h, grad_v);
  const vf decayed = p.decay * grad_h;
  const vf after = n.reset == Reset::hard ? reset_hard(n, p.before, p.fired) : p.before;
  Gradients grad = {
      grad_h, past_reset(n, p.fired, decayed), grad_h * (after - set(n.v_rest)),
      grad_spikes * slope_by_threshold(n, p.h, p.threshold, p.slope) + reset_by_threshold(n, p.fired, grad_h)};
  if (differentiates_reset(n)) {
    const vf by_fired = reset_by_spikes(n, p.before, p.threshold, n.reset == Reset::soft ? grad_h : decayed);
    grad.before += by_fired * p.slope_before;
    grad.threshold += by_fired * slope_by_threshold(n, p.before, p.threshold, p.slope_before);
  }
  return grad;
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
