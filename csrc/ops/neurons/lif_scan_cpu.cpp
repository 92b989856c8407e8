// lif_scan: leaky integrate-and-fire neurons over time. A block of neurons goes through all steps with its state in L1,
// so every input is read once and every spike is written once.
#include "lanes_cpu.h"
#include "lif_scan.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

int64_t plan(const Tensor& x, const Tensor& v0, const Tensor& decay_tensor, const Tensor& v_threshold_tensor,
             double decay, double input_gain, double v_rest, double v_threshold, const char* reset, double v_reset,
             bool reset_next_step, bool detach_reset, bool strict, int64_t max_count, const char* count_rounding,
             double v_min, const char* surrogate, double alpha, double beta, bool) {
  scan_of(x, v0, decay_tensor, v_threshold_tensor, decay, input_gain, v_rest, v_threshold, reset, v_reset,
          reset_next_step, detach_reset, strict, max_count, count_rounding, v_min, surrogate, alpha, beta);
  return 0;
}

struct State {
  alignas(64) float v[kBlock];
  alignas(64) float decay[kBlock];
  alignas(64) float threshold[kBlock];
};

// A task takes blocks of kBlock neurons, eight vectors, one after the other through all steps. v, decay and threshold
// [kBlock] stay in L1; rows of x, spikes and states [T][neurons] pass by, each element once. The eight vectors of a
// step depend on nothing of one another.
//
// One step of `lanes` neurons; v_row is null where the states of single steps are not wanted.
template <class T> SBHAL_INLINE void step(const Neuron& n, State& state, const T* x, T* spikes, float* v_row,
                                          int64_t lanes, bool around_cache) {
  for (int64_t i = 0; i < lanes; i += kLanes) {
    prefetch(x + i + kBlock);
    const vf v = load(state.v + i), threshold = load(state.threshold + i);
    const vf fired = n.reset_next_step ? fire(n, v, threshold) : zero();
    const vf h = charge(n, v, load(x + i, lanes - i), fired, load(state.decay + i), threshold);
    const vf s = fire(n, h, threshold);
    const vf next = clamp_below(n, settle(n, h, s, threshold));
    put(spikes + i, s, lanes - i, around_cache);
    store(state.v + i, next);
    if (v_row) put(v_row + i, next, lanes - i, around_cache);
  }
}

void launch(const Tensor& x, const Tensor& v0, const Tensor& decay_tensor, const Tensor& v_threshold_tensor,
            double decay, double input_gain, double v_rest, double v_threshold, const char* reset, double v_reset,
            bool reset_next_step, bool detach_reset, bool strict, int64_t max_count, const char* count_rounding,
            double v_min, const char* surrogate, double alpha, double beta, bool return_v, const Tensor& spikes,
            const Tensor& v_final, const Tensor& v, const Launch& launch) {
  const Scan scan =
      scan_of(x, v0, decay_tensor, v_threshold_tensor, decay, input_gain, v_rest, v_threshold, reset, v_reset,
              reset_next_step, detach_reset, strict, max_count, count_rounding, v_min, surrogate, alpha, beta);
  const Neuron n = scan.neuron;
  const int64_t steps = scan.steps, neurons = scan.neurons;
  const Tasks blocks = blocks_of(neurons);
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    const bool around_cache = steps * neurons * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
    parallel_for(blocks.count, launch.num_threads, [&](int64_t task, int) {
      State state{};
      for (int64_t first = blocks.begin(task); first < blocks.end(task); first += kBlock) {
        const int64_t lanes = min(kBlock, neurons - first);
        fill(state.v, scan.start, first, lanes);
        fill(state.decay, scan.decays, first, lanes);
        fill(state.threshold, scan.thresholds, first, lanes);
        const Steps<T> inputs(x, first), outputs(spikes, first);
        const Steps<float> states(v, first);
        for (int64_t t = 0; t < steps; ++t)
          step(n, state, inputs.at(t), outputs.at(t), return_v ? states.at(t) : nullptr, lanes, around_cache);
        float* last = static_cast<float*>(v_final.data) + first;
        for (int64_t i = 0; i < lanes; i += kLanes) store(last + i, load(state.v + i), lanes - i);
      }
      stream_fence();
    });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(lif_scan, 1, plan, launch)
