// lif_scan_backward: potentials are recomputed forwards from the spikes that were emitted, never decided again, then
// one sweep back in time. Long scans keep the state at segment starts only and recompute one segment at a time.
#include "lanes_cpu.h"
#include "lif_scan_gradient.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kSlots = 64;         // slices of the workspace, and so the most threads
constexpr int64_t kLongestScan = 256;  // steps that are replayed at once: 256 KiB a slice at 16 lanes

// Steps kept at once, and the states kept between such segments.
struct Segments {
  int64_t length, count;
  explicit Segments(int64_t steps) : length(max<int64_t>(steps, 1)), count(1) {
    if (steps <= kLongestScan) return;
    length = 1;
    while (length * length < steps) length *= 2;
    count = ceil_div(steps, length);
  }
  int64_t slice() const { return (2 * length + 1 + count) * kBlock; }  // floats
};

int64_t slots_of(const Tasks& blocks) { return min(kSlots, blocks.count); }

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
  return slots_of(blocks_of(scan.neurons)) * Segments(scan.steps).slice() * static_cast<int64_t>(sizeof(float));
}

// The neurons of one block.
struct State {
  alignas(64) float v[kBlock];  // at the start of the segment being replayed
  alignas(64) float decay[kBlock];
  alignas(64) float threshold[kBlock];
  alignas(64) float grad_v[kBlock];  // with respect to the state handed on by the step last visited
  alignas(64) float grad_decay[kBlock];
  alignas(64) float grad_threshold[kBlock];
};

template <class T> struct Sequences {
  Steps<const T> x, spikes, grad_spikes;
  Steps<const float> grad_v;
  Steps<T> grad_x;
  int64_t lanes;
  bool around_cache, wants_decay, wants_threshold;
};

// The steps of one segment, recomputed: row k of each is step begin + k.
struct Replay {
  float *potentials, *fired, *spikes;  // fired is spikes moved by one step, and one row longer
  Replay(float* scratch, int64_t length)
      : potentials(scratch), fired(scratch + length * kBlock), spikes(fired + kBlock) {}
};

// Moves state.v from the start of a segment to its end.
template <class T>
void replay(const Neuron n, const Sequences<T> seq, int64_t begin, int64_t end, State& state, const Replay out) {
  for (int64_t i = 0; n.reset_next_step && i < seq.lanes; i += kLanes)
    store(out.fired + i, begin > 0 ? load(seq.spikes.at(begin - 1) + i, seq.lanes - i)
                                   : fire(n, load(state.v + i), load(state.threshold + i)));
  for (int64_t t = begin, row = 0; t < end; ++t, row += kBlock)
    for (int64_t i = 0; i < seq.lanes; i += kLanes) {
      prefetch_l2(seq.x.at(t) + i + kBlock);
      prefetch_l2(seq.spikes.at(t) + i + kBlock);
      if (seq.grad_spikes.data) prefetch_l2(seq.grad_spikes.at(t) + i);
      const int64_t left = seq.lanes - i;
      const vf threshold = load(state.threshold + i), spikes = load(seq.spikes.at(t) + i, left);
      const vf fired = n.reset_next_step ? load(out.fired + row + i) : zero();
      const vf h = charge(n, load(state.v + i), load(seq.x.at(t) + i, left), fired, load(state.decay + i), threshold);
      store(out.potentials + row + i, h);
      store(out.spikes + row + i, spikes);
      store(state.v + i, clamp_below(n, settle(n, h, spikes, threshold)));
    }
}

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
  with_surrogate(n, [&](const auto& derivative) { slopes(n, h, threshold, slope, lanes, derivative); });
}

void copy_block(float* to, const float* from) {
  for (int64_t i = 0; i < kBlock; i += kLanes) store(to + i, load(from + i));
}

SBHAL_INLINE void accumulate(float* sum, vf term) { store(sum, load(sum) + term); }

// One step back; row k of the replay is step t, `before` the state handed to it.
template <class T> void row_back(const Neuron n, const Sequences<T> seq, int64_t t, int64_t k, State& state,
                                 const Replay done, const float* before, const float* slope,
                                 const float* slope_before) {
  for (int64_t i = 0; i < seq.lanes; i += kLanes) {
    const int64_t left = seq.lanes - i, at = k * kBlock + i;
    const vf grad_spikes = seq.grad_spikes.data ? load(seq.grad_spikes.at(t) + i, left) : zero();
    vf grad_v = load(state.grad_v + i);
    if (seq.grad_v.data) grad_v += load(seq.grad_v.at(t) + i, left);
    const Point p = {load(done.potentials + at), load(before + i),         load(done.spikes + at),
                     load(done.fired + at),      load(slope + i),          load(slope_before + i),
                     load(state.decay + i),      load(state.threshold + i)};
    const Gradients grad =
        n.reset_next_step ? step_back_delayed(n, p, grad_spikes, grad_v) : step_back(n, p, grad_spikes, grad_v);
    put(seq.grad_x.at(t) + i, set(n.input_gain) * grad.h, left, seq.around_cache);
    store(state.grad_v + i, grad.before);
    if (seq.wants_decay) accumulate(state.grad_decay + i, grad.decay);
    if (seq.wants_threshold) accumulate(state.grad_threshold + i, grad.threshold);
  }
}

// The state that step k - 1 of the replay handed on.
void state_after(const Neuron n, const State& state, const Replay done, int64_t k, int64_t lanes, float* v) {
  for (int64_t i = 0; i < lanes; i += kLanes) {
    const vf h = load(done.potentials + k * kBlock + i), spikes = load(done.spikes + k * kBlock + i);
    store(v + i, clamp_below(n, settle(n, h, spikes, load(state.threshold + i))));
  }
}

// Sweeps back over a replayed segment; `start` is the state before it.
template <class T> void sweep(const Neuron& n, const Sequences<T>& seq, int64_t begin, int64_t end, State& state,
                              const float* start, const Replay& done) {
  alignas(64) float recomputed[kBlock] = {}, slope[kBlock] = {}, slope_before[kBlock] = {};
  for (int64_t k = end - begin - 1; k >= 0; --k) {
    const float* before = k > 0 ? recomputed : start;
    if (k > 0 && (n.reset_next_step || seq.wants_decay)) state_after(n, state, done, k - 1, seq.lanes, recomputed);
    surrogate_slopes(n, done.potentials + k * kBlock, state.threshold, slope, seq.lanes);
    if (n.reset_next_step) surrogate_slopes(n, before, state.threshold, slope_before, seq.lanes);
    row_back(n, seq, begin + k, k, state, done, before, slope, slope_before);
  }
}

// All steps of one block: forwards for the states between segments, then back through the segments. A task takes one
// block after the other. State is for L1; the thread's slice of the workspace, for L2, has rows of kBlock floats:
//
//   starts      [segments] the state before each
//   potentials  [length] of the segment at hand
//   fired       [1 + length] what the step before fired, where that matters; from its second row on the steps' spikes
//
// The way forwards leaves the last segment's rows, from which the way back begins; each earlier segment is replayed and
// swept. No task reads what another writes.
template <class T>
void scan_back(const Neuron& n, const Sequences<T>& seq, int64_t steps, State& state, float* scratch) {
  const Segments segments(steps);
  const Replay rows(scratch + segments.count * kBlock, segments.length);
  for (int64_t k = 0; k < segments.count; ++k) {
    copy_block(scratch + k * kBlock, state.v);
    replay(n, seq, k * segments.length, min(steps, (k + 1) * segments.length), state, rows);
  }
  for (int64_t k = segments.count - 1; k >= 0; --k) {
    const int64_t begin = k * segments.length, end = min(steps, begin + segments.length);
    const float* start = scratch + k * kBlock;
    if (k < segments.count - 1) {
      copy_block(state.v, start);
      replay(n, seq, begin, end, state, rows);
    }
    sweep(n, seq, begin, end, state, start, rows);
  }
}

void put_gradients(const Parameter& parameter, const Tensor& grad, const float* values, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; ++i) put_gradient(parameter, grad.data, first + i, values[i]);
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
  const Parameter last = last_gradient(grad_v_final, x);
  const Neuron n = scan.neuron;
  const int64_t steps = scan.steps, neurons = scan.neurons, slice = Segments(steps).slice();
  const Tasks blocks = blocks_of(neurons);
  const int threads = static_cast<int>(min<int64_t>(launch.num_threads, slots_of(blocks)));
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    const bool around_cache = steps * neurons * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
    parallel_for(blocks.count, threads, [&](int64_t task, int thread) {
      float* scratch = reinterpret_cast<float*>(launch.workspace) + thread * slice;
      for (int64_t first = blocks.begin(task); first < blocks.end(task); first += kBlock) {
        State state{};
        const int64_t lanes = min(kBlock, neurons - first);
        fill(state.v, scan.start, first, lanes);
        fill(state.decay, scan.decays, first, lanes);
        fill(state.threshold, scan.thresholds, first, lanes);
        fill(state.grad_v, last, first, lanes);
        const Sequences<T> seq = {{x, first},      {spikes, first},     {grad_spikes, first},
                                  {grad_v, first}, {grad_x, first},     lanes,
                                  around_cache,    scan.decays.given(), scan.thresholds.given()};
        scan_back(n, seq, steps, state, scratch);
        put_gradients(scan.start, grad_v0, state.grad_v, first, lanes);
        put_gradients(scan.decays, grad_decay, state.grad_decay, first, lanes);
        put_gradients(scan.thresholds, grad_threshold, state.grad_threshold, first, lanes);
      }
      stream_fence();
    });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(lif_scan_backward, 1, plan, launch)
