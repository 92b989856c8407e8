// lif_scan: one neuron after the other, each through all time steps. The operator's own header checks the arguments.
#include "ops/neurons/lif_scan.h"

#include <cmath>

#include "core/parallel.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kNeuronsPerTask = 256;

int64_t plan(const Tensor& x, const Tensor& v0, const Tensor& decay_tensor, const Tensor& v_threshold_tensor,
             double decay, double input_gain, double v_rest, double v_threshold, const char* reset, double v_reset,
             bool reset_next_step, bool detach_reset, bool strict, int64_t max_count, const char* count_rounding,
             double v_min, const char* surrogate, double alpha, double beta, bool) {
  scan_of(x, v0, decay_tensor, v_threshold_tensor, decay, input_gain, v_rest, v_threshold, reset, v_reset,
          reset_next_step, detach_reset, strict, max_count, count_rounding, v_min, surrogate, alpha, beta);
  return 0;
}

// One neuron: its parameters, and its potential from step to step.
struct Cell {
  const Neuron& neuron;
  float v, decay, threshold;

  float spikes_at(float potential) const {
    if (neuron.fire == Fire::at_threshold) return potential >= threshold ? 1.0f : 0.0f;
    if (neuron.fire == Fire::above_threshold) return potential > threshold ? 1.0f : 0.0f;
    const float ratio = potential / threshold;
    const float count = neuron.fire == Fire::floor ? std::floor(ratio) : std::nearbyint(ratio);
    return count > 0.0f ? min(count, neuron.max_count) : 0.0f;
  }

  float after_reset(float potential, float spikes) const {
    if (neuron.reset == Reset::hard) return spikes > 0.0f ? neuron.v_reset : potential;
    return neuron.reset == Reset::soft ? potential - spikes * threshold : potential;
  }

  // A reset left to this step is a hard one of the potential before it leaks, or a soft one of the sum.
  float step(float x) {
    const float late = neuron.reset_next_step ? spikes_at(v) : 0.0f;
    if (neuron.reset_next_step && neuron.reset == Reset::hard) v = after_reset(v, late);
    float h = neuron.v_rest + decay * (v - neuron.v_rest) + neuron.input_gain * x;
    if (neuron.reset_next_step && neuron.reset == Reset::soft) h = after_reset(h, late);
    const float spikes = spikes_at(h);
    v = neuron.reset_next_step ? h : after_reset(h, spikes);
    if (v < neuron.v_min) v = neuron.v_min;
    return spikes;
  }
};

void launch(const Tensor& x, const Tensor& v0, const Tensor& decay_tensor, const Tensor& v_threshold_tensor,
            double decay, double input_gain, double v_rest, double v_threshold, const char* reset, double v_reset,
            bool reset_next_step, bool detach_reset, bool strict, int64_t max_count, const char* count_rounding,
            double v_min, const char* surrogate, double alpha, double beta, bool return_v, const Tensor& spikes,
            const Tensor& v_final, const Tensor& v, const Launch& launch) {
  const Scan scan =
      scan_of(x, v0, decay_tensor, v_threshold_tensor, decay, input_gain, v_rest, v_threshold, reset, v_reset,
              reset_next_step, detach_reset, strict, max_count, count_rounding, v_min, surrogate, alpha, beta);
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    parallel_for(ceil_div(scan.neurons, kNeuronsPerTask), launch.num_threads, [&](int64_t task, int) {
      const int64_t end = min(scan.neurons, (task + 1) * kNeuronsPerTask);
      for (int64_t i = task * kNeuronsPerTask; i < end; ++i) {
        Cell cell = {scan.neuron, scan.start.at(i), scan.decays.at(i), scan.thresholds.at(i)};
        for (int64_t t = 0; t < scan.steps; ++t) {
          const float now = to_float(static_cast<const T*>(x.data)[t * x.stride[0] + i]);
          static_cast<T*>(spikes.data)[t * scan.neurons + i] = from_float<T>(cell.step(now));
          if (return_v) static_cast<float*>(v.data)[t * scan.neurons + i] = cell.v;
        }
        static_cast<float*>(v_final.data)[i] = cell.v;
      }
    });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(lif_scan, 1, plan, launch)
