// lif_scan_backward: potentials are recomputed forwards from the spikes that were emitted, never decided again, then
// one sweep back in time. A thread takes one neuron through all of it.
//
// It works in segments of steps that its column of shared memory holds. The states at their starts are kept in the
// workspace by a first sweep forwards, which a scan of one segment does without: it reads and writes everything once.
#include "lif_scan_gradient.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kThreads = 128;
constexpr int kLength = 16;  // steps of a segment
constexpr int kBatch = 4;    // steps whose inputs are loaded together

int64_t plan(const Tensor& x, const Tensor& v0, const Tensor& decay_tensor, const Tensor& v_threshold_tensor,
             const Tensor& spikes, const Tensor& grad_spikes, const Tensor& grad_v_final, const Tensor& grad_v,
             double decay, double input_gain, double v_rest, double v_threshold, const char* reset, double v_reset,
             bool reset_next_step, bool detach_reset, bool strict, int64_t max_count, const char* count_rounding,
             double v_min, const char* surrogate, double alpha, double beta, bool) {
  const Scan scan =
      scan_of(x, v0, decay_tensor, v_threshold_tensor, decay, input_gain, v_rest, v_threshold, reset, v_reset,
              reset_next_step, detach_reset, strict, max_count, count_rounding, v_min, surrogate, alpha, beta);
  check_gradients(x, spikes, grad_spikes, grad_v);
  last_gradient(grad_v_final, x);
  return max<int64_t>(0, ceil_div(scan.steps, kLength) - 1) * scan.neurons * static_cast<int64_t>(sizeof(float));
}

template <class T> struct Sequences {
  Steps<const T> x, spikes, grad_spikes;
  Steps<const float> grad_v;
  Steps<T> grad_x;
};

// One neuron and the steps of a segment, counted from `begin`.
struct Segment {
  Neuron n;
  int64_t neuron;
  float decay, threshold;
  float *h, *spikes;  // the thread's columns
  int64_t begin = 0;
  int length = 0;
  float start = 0, fired_start = 0;  // the state handed to the first step, and what it fired

  SBHAL_INLINE float potential(int k) const { return h[k * kThreads]; }
  SBHAL_INLINE float emitted(int k) const { return spikes[k * kThreads]; }
  SBHAL_INLINE float before(int k) const {
    return k > 0 ? clamp_below(n, settle(n, potential(k - 1), emitted(k - 1), threshold)) : start;
  }
  SBHAL_INLINE float fired(int k) const { return k > 0 ? emitted(k - 1) : fired_start; }
};

template <class T> struct Batch {
  T of[kBatch];
};

// The batch of steps from k on, zeros where the segment has none.
template <class T> SBHAL_INLINE Batch<T> load_batch(const Segment& segment, const Steps<const T>& from, int k) {
  Batch<T> loaded = {};
  if (!from.data || k < 0) return loaded;
  const T* at = from.at(segment.begin + k) + segment.neuron;  // moved on: products would be kept for every step
#pragma unroll
  for (int i = 0; i < kBatch; ++i)
    if (k + i < segment.length) loaded.of[i] = *at, at += from.stride;
  return loaded;
}

// Recomputes the segment that starts at step `begin` with the state v. Returns the state after it.
template <class T>
SBHAL_INLINE float replay(Segment& segment, const Sequences<T>& seq, int64_t begin, int64_t steps, float v) {
  const Neuron& n = segment.n;
  segment.begin = begin, segment.length = static_cast<int>(min<int64_t>(kLength, steps - begin));
  segment.start = v, segment.fired_start = 0.0f;
  if (n.reset_next_step)
    segment.fired_start =
        begin > 0 ? to_float(seq.spikes.at(begin - 1)[segment.neuron]) : fire(n, v, segment.threshold);
  float fired = segment.fired_start;
  Batch<T> next_x = load_batch(segment, seq.x, 0), next_emitted = load_batch(segment, seq.spikes, 0);
  for (int k = 0; k < segment.length; k += kBatch) {
    const Batch<T> x = next_x, emitted = next_emitted;
    next_x = load_batch(segment, seq.x, k + kBatch), next_emitted = load_batch(segment, seq.spikes, k + kBatch);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (k + i >= segment.length) break;
      const float h = charge(n, v, to_float(x.of[i]), fired, segment.decay, segment.threshold);
      segment.h[(k + i) * kThreads] = h;
      segment.spikes[(k + i) * kThreads] = fired = to_float(emitted.of[i]);
      v = clamp_below(n, settle(n, h, fired, segment.threshold));
    }
  }
  return v;
}

// Derivatives of the spikes by a batch of potentials.
SBHAL_INLINE void slopes(const Neuron& n, float threshold, float (&p)[kBatch], float (&slope)[kBatch]) {
  const float unit = n.counts() ? 1.0f : threshold;
  if (n.counts()) {
#pragma unroll
    for (float& potential : p) potential /= threshold;
  }
  with_surrogate(n, [&](const auto& derivative) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) slope[i] = derivative(p[i] - unit, p[i], unit);
  });
  if (n.counts()) {
#pragma unroll
    for (float& value : slope) value /= threshold;
  }
}

// With respect to the state before the steps visited so far, to the decay and to the threshold.
struct Carried {
  float v, decay, threshold;
};

// Back through a batch of a segment that was replayed.
template <class T> SBHAL_INLINE void batch_back(const Segment& segment, const Sequences<T>& seq, int k,
                                                const Batch<T>& grad_spikes, Carried& grad) {
  const Neuron& n = segment.n;
  const Batch<float> grad_v = load_batch(segment, seq.grad_v, k);
  float p[kBatch] = {}, slope[kBatch], slope_before[kBatch] = {};
#pragma unroll
  for (int i = 0; i < kBatch; ++i)
    if (k + i < segment.length) p[i] = segment.potential(k + i);
  slopes(n, segment.threshold, p, slope);
  if (n.reset_next_step) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (k + i < segment.length) p[i] = segment.before(k + i);
    slopes(n, segment.threshold, p, slope_before);
  }
  T* grad_x = seq.grad_x.at(segment.begin + min(k + kBatch, segment.length)) + segment.neuron;
#pragma unroll
  for (int i = kBatch - 1; i >= 0; --i) {
    if (k + i >= segment.length) continue;
    const Point point = {
        segment.potential(k + i), segment.before(k + i), segment.emitted(k + i), segment.fired(k + i), slope[i],
        slope_before[i],          segment.decay,         segment.threshold};
    grad.v += grad_v.of[i];
    const float by_spikes = to_float(grad_spikes.of[i]);
    const Gradients g =
        n.reset_next_step ? step_back_delayed(n, point, by_spikes, grad.v) : step_back(n, point, by_spikes, grad.v);
    grad_x -= seq.grad_x.stride;
    *grad_x = from_float<T>(n.input_gain * g.h);
    grad = {g.before, grad.decay + g.decay, grad.threshold + g.threshold};
  }
}

template <class T> SBHAL_INLINE void segment_back(const Segment& segment, const Sequences<T>& seq, Carried& grad) {
  int k = (segment.length - 1) / kBatch * kBatch;
  Batch<T> next = load_batch(segment, seq.grad_spikes, k);
  for (; k >= 0 && k < segment.length; k -= kBatch) {
    const Batch<T> grad_spikes = next;
    next = load_batch(segment, seq.grad_spikes, k - kBatch);
    batch_back(segment, seq, k, grad_spikes, grad);
  }
}

// A block: 128 neurons, each a thread's alone.
//
//   potentials, emitted  [16 steps of a segment][128 threads] in shared memory: neighbours in neighbouring banks
//   registers            the state, the gradients carried back, and batches of four steps of what is read ahead
//   states               [segments but the last][neurons] in the workspace, those at their starts
//
// Forwards through all segments but the last, keeping states; then from the last one back: replay a segment into the
// thread's columns, sweep back over it. A thread reads only columns and states that it wrote itself: no barrier.
template <class T, bool delayed> __global__ void __launch_bounds__(kThreads)
    scan_back(Scan scan, Parameter last, Sequences<T> seq, float* states, void* grad_v0, void* grad_decay,
              void* grad_threshold) {
  SBHAL_SHARED(float, potentials, kLength* kThreads);
  SBHAL_SHARED(float, emitted, kLength* kThreads);
  const int64_t neuron = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (neuron >= scan.neurons) return;
  Segment segment = {
      scan.neuron,          neuron, scan.decays.at(neuron), scan.thresholds.at(neuron), potentials + threadIdx.x,
      emitted + threadIdx.x};
  segment.n.reset_next_step = delayed;

  float v = scan.start.at(neuron);
  int64_t begin = 0;
  states += neuron;
  for (; begin + kLength < scan.steps; begin += kLength, states += scan.neurons) {
    *states = v;
    v = replay(segment, seq, begin, scan.steps, v);
  }
  Carried grad = {last.at(neuron), 0.0f, 0.0f};
  for (; begin >= 0; begin -= kLength) {
    replay(segment, seq, begin, scan.steps, v);
    segment_back(segment, seq, grad);
    if (begin > 0) states -= scan.neurons, v = *states;
  }
  put_gradient(scan.start, grad_v0, neuron, grad.v);
  put_gradient(scan.decays, grad_decay, neuron, grad.decay);
  put_gradient(scan.thresholds, grad_threshold, neuron, grad.threshold);
}

void launch(const Tensor& x, const Tensor& v0, const Tensor& decay_tensor, const Tensor& v_threshold_tensor,
            const Tensor& spikes, const Tensor& grad_spikes, const Tensor& grad_v_final, const Tensor& grad_v,
            double decay, double input_gain, double v_rest, double v_threshold, const char* reset, double v_reset,
            bool reset_next_step, bool detach_reset, bool strict, int64_t max_count, const char* count_rounding,
            double v_min, const char* surrogate, double alpha, double beta, bool, const Tensor& grad_x,
            const Tensor& grad_v0, const Tensor& grad_decay, const Tensor& grad_threshold, const Launch& launch) {
  const Scan scan =
      scan_of(x, v0, decay_tensor, v_threshold_tensor, decay, input_gain, v_rest, v_threshold, reset, v_reset,
              reset_next_step, detach_reset, strict, max_count, count_rounding, v_min, surrogate, alpha, beta);
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    const auto kernel = scan.neuron.reset_next_step ? scan_back<T, true> : scan_back<T, false>;
    const Sequences<T> seq = {{x, 0}, {spikes, 0}, {grad_spikes, 0}, {grad_v, 0}, {grad_x, 0}};
    launch_kernel("lif_scan_backward", kernel, ceil_div(scan.neurons, int64_t{kThreads}), kThreads, launch, scan,
                  last_gradient(grad_v_final, x), seq, reinterpret_cast<float*>(launch.workspace), grad_v0.data,
                  grad_decay.data, grad_threshold.data);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(lif_scan_backward, 1, plan, launch)
