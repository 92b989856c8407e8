// lif_scan: leaky integrate-and-fire neurons over time. A thread takes its neurons through all steps with their state
// in registers, so every input is read once and every spike is written once; inputs of the next steps are on their way
// while it computes the present ones.
#include "gpu/pack.h"
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

constexpr int kThreads = 128;
constexpr int kAhead = 8;                  // steps whose inputs are loaded before they are needed
constexpr int64_t kManyNeurons = 1 << 17;  // enough to fill a device with two a thread

// The same neuron with what decides most of a step's work as constants. Roundings of counts share a kernel.
template <Fire fire, bool delayed> SBHAL_INLINE Neuron specialized(Neuron n) {
  if (fire == Fire::floor)
    n.fire = n.fire == Fire::floor ? Fire::floor : Fire::half_even;
  else
    n.fire = fire;
  n.reset_next_step = delayed;
  return n;
}

// A thread's elements of step after step.
template <class T> struct Cursor {
  T* at;
  int64_t stride;
  SBHAL_INLINE Cursor(const Steps<T>& steps, int64_t first)
      : at(steps.data ? steps.data + first : nullptr), stride(steps.stride) {}
  SBHAL_INLINE void move() { at += stride; }
};

template <class T, int together> struct Inputs {
  Pack<T, together> of[kAhead];

  SBHAL_INLINE void load(Cursor<const T>& x, int64_t steps_left) {
    const int count = static_cast<int>(min<int64_t>(kAhead, steps_left));
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (k < count) of[k] = load_pack<together>(x.at);
      x.move();
    }
  }
};

template <int together> struct State {
  Pack<float, together> v, decay, threshold;
};

// Returns the spikes.
template <class T, int together>
SBHAL_INLINE Pack<T, together> step(const Neuron& n, const Pack<T, together>& x, State<together>& state) {
  Pack<T, together> emitted;
#pragma unroll
  for (int i = 0; i < together; ++i) {
    const float threshold = state.threshold.at[i];
    const float fired = n.reset_next_step ? fire(n, state.v.at[i], threshold) : 0.0f;
    const float h = charge(n, state.v.at[i], to_float(x.at[i]), fired, state.decay.at[i], threshold);
    const float s = fire(n, h, threshold);
    state.v.at[i] = clamp_below(n, settle(n, h, s, threshold));
    emitted.at[i] = from_float<T>(s);
  }
  return emitted;
}

// A thread: `together` neighbouring neurons, one or two, through all steps; a wavefront reads and writes neighbouring
// elements of a row. In registers: v, decay and threshold [together], and inputs [8 steps][together] twice, those of
// now and those on their way. Eight steps: take what came, ask for the next eight, compute, write spikes and, if they
// are wanted, states. Threads share nothing: no barrier, so those past the last neuron may leave.
template <class T, int together, Fire fire, bool delayed> __global__ void __launch_bounds__(kThreads)
    scan_neurons(Scan scan, Steps<const T> x, Steps<T> spikes, Steps<float> v, float* v_final) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * together;
  if (first >= scan.neurons) return;
  const Neuron n = specialized<fire, delayed>(scan.neuron);
  State<together> state;
#pragma unroll
  for (int i = 0; i < together; ++i) {
    state.v.at[i] = scan.start.at(first + i);
    state.decay.at[i] = scan.decays.at(first + i);
    state.threshold.at[i] = scan.thresholds.at(first + i);
  }
  Cursor<const T> from(x, first);
  Cursor<T> to(spikes, first);
  Cursor<float> trace(v, first);
  const bool is_traced = v.data;
  Inputs<T, together> ahead = {};
  ahead.load(from, scan.steps);
  for (int64_t left = scan.steps; left > 0; left -= kAhead) {
    const Inputs<T, together> now = ahead;
    ahead.load(from, left - kAhead);
    const int count = static_cast<int>(min<int64_t>(kAhead, left));
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (k >= count) continue;
      store_pack(to.at, step(n, now.of[k], state));
      to.move();
      if (is_traced) store_pack(trace.at, state.v), trace.move();
    }
  }
#pragma unroll
  for (int i = 0; i < together; ++i) v_final[first + i] = state.v.at[i];
}

template <class T, int together, Fire fire> void scan_all(const Scan& scan, const Tensor& x, const Tensor& spikes,
                                                          const Tensor& v, const Tensor& v_final,
                                                          const Launch& launch) {
  const auto kernel =
      scan.neuron.reset_next_step ? scan_neurons<T, together, fire, true> : scan_neurons<T, together, fire, false>;
  launch_kernel("lif_scan", kernel, ceil_div(scan.neurons, int64_t{kThreads} * together), kThreads, launch, scan,
                Steps<const T>(x, 0), Steps<T>(spikes, 0), Steps<float>(v, 0), static_cast<float*>(v_final.data));
}
template <class T, int together> void scan_all(const Scan& scan, const Tensor& x, const Tensor& spikes, const Tensor& v,
                                               const Tensor& v_final, const Launch& launch) {
  switch (scan.neuron.fire) {
    case Fire::at_threshold: return scan_all<T, together, Fire::at_threshold>(scan, x, spikes, v, v_final, launch);
    case Fire::above_threshold:
      return scan_all<T, together, Fire::above_threshold>(scan, x, spikes, v, v_final, launch);
    case Fire::floor:
    case Fire::half_even: return scan_all<T, together, Fire::floor>(scan, x, spikes, v, v_final, launch);
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
  Tensor states = v;
  if (!return_v) states.ndim = -1;
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    if constexpr (sizeof(T) == 2) {  // where two neurons fill a thread's share of a transaction
      const bool pairs = scan.neurons >= kManyNeurons && scan.neurons % 2 == 0 && x.stride[0] % 2 == 0 &&
                         packs_at(x, sizeof(T), 2) && packs_at(spikes, sizeof(T), 2) && packs_at(v, sizeof(float), 2);
      if (pairs) return scan_all<T, 2>(scan, x, spikes, states, v_final, launch);
    }
    scan_all<T, 1>(scan, x, spikes, states, v_final, launch);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(lif_scan, 1, plan, launch)
