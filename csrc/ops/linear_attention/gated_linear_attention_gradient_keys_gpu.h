// Gated linear attention backwards: a span's dq, dk and dg for one tile of channels.
//
// kSum is in how many parts sums enter products: where 16-bit inputs have float32 gates, three bfloat16 keep all of the
// float32 that the gates' gradient promises.
#pragma once
#include "gated_linear_attention_gradient_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

template <class T, int kSum> struct Levels {
  using E = typename Parts<T>::Element;
  static constexpr int kPlane = kTile * kSpanPitch;

  E *offers, *scores;  // what tokens offer at a level, [channel][token], and the scores' tiles; diagonal ones masked
  float* results;      // [token][channel]
  float* totals;       // of each run and channel
  const RunDecays& decays;
  MmaTile<E> (&owned)[kOwned];  // the wavefront's tiles of the scores
  const Run<T>&q, &k;
  float (&dq)[kRun], (&dk)[kRun], (&crossing)[kRun];

  SBHAL_INLINE void store_score(int i, int row, int column, float value) const {
    store_parts<kSum>(value, scores + (i * 16 + row) * kScorePitch + column, kScorePlane);
  }

  SBHAL_INLINE void mask_scores(int half) const {
    if (wave() >= 4) return;
    owned[0].each([&](int row, int column, float& value) {
      if (row < column) return;
      const float kept = meet(half, row, column) ? value : 0;
      store_score(wave(), row, column, kept), store_score(wave(), column, row, kept);
    });
  }

  template <Stored stored> SBHAL_INLINE void add_product(MmaTile<E>& to, int i, int channels, int tokens) const {
    multiply_parts<kSum, kSum, kSum, stored, Stored::columns>(
        to, Operand<E>{scores + i * 16 * kScorePitch, kScorePitch, kScorePlane},
        Operand<E>{offers + channels * 16 * kSpanPitch + tokens * 16, kSpanPitch, kPlane});
  }

  // Adds a level's paths to the gradients.
  SBHAL_INLINE void add(int half) const {
    float w[kRun], x[kRun];
    weigh(half, decays, w);
#pragma unroll
    for (int e = 0; e < kRun; ++e) x[e] = w[e] * (receives(half, e) ? q[e] : k[e]);
    store_parts<kSum>(x, offers + run_channel() * kSpanPitch + run_token(), kPlane);
    if (half < 16) mask_scores(half);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kJobs; ++j) {
      const int job = wave() + j * kWaves, block = job / 2, channels = job % 2;
      const int count = max(half / 16, 1), first = half < 16 ? block : (block / count ^ 1) * count;
      MmaTile<E> sum;
      sum.zero();
      for (int other = first; other < first + count; ++other) {
        if (other <= block)
          add_product<Stored::rows>(sum, score_block(block, other), channels, other);
        else
          add_product<Stored::columns>(sum, score_block(other, block), channels, other);
      }
      store_result(sum, job, results);
    }
    __syncthreads();
    float received[kRun], leaving[kRun];
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      const bool query = receives(half, e);
      const float gradient = w[e] * result(e);
      dq[e] += query ? gradient : 0;
      dk[e] += query ? 0 : gradient;
      received[e] = query ? gradient * q[e] : 0;
      leaving[e] = query ? 0 : gradient * k[e];
    }
    add_received(half, received, crossing), add_leaving(half, leaving, crossing);
    if (half <= kRun) return;
    const bool later = receives(half, 0);
    add_runs(sum_run(received) + sum_run(leaving), later ? run() + 1 : first_run(half), later ? end_run(half) : run());
  }

  // Adds what runs [from, to) of the channel have for the gates of this one; `own` is what this one has for others.
  SBHAL_INLINE void add_runs(float own, int from, int to) const {
    totals[threadIdx.x] = own;
    __syncthreads();
    float all = 0;
    for (int r = from; r < to; ++r) all += totals[r * kTile + run_channel()];
#pragma unroll
    for (float& sum : crossing) sum += all;
  }

  SBHAL_INLINE float result(int e) const { return results[(run_token() + e) * kResultPitch + run_channel()]; }
};

// A block: 64 tokens by 32 channels of a key/value head with its query heads.
//
//   registers  of a thread: its run of eight tokens of one channel of q, k, dq, dk and of the gates' gradient; of a
//              wavefront: kJobs tiles of sums [64 tokens][32 channels], kOwned of the ten tiles of scores
//   staged     in turn state [32 channels][32 columns], grad_o and v [64 tokens][32 columns]; offers [32 channels][64
//              tokens] and ten scores [16][16]; results [64][32] float lie behind the latter, maybe over the former
//   shared     products and totals [8 runs][32 channels], diagonal [64 tokens], through [32 channels]
//
// First the keys: each 32 columns (| stage | sums) | results = sums, through | dk. Then each query head: each 32
// columns (| stage | sums, scores) | results = sums, scores and diagonal out | dq; six levels (offers, scores of the
// level | results = scores offers | dq, dk). Every | is a barrier: what was written before it is read behind it, what
// was read before it may be replaced. add_runs() has one more, between its writing and its reading of totals.
template <class T, int kSum> __global__ void SBHAL_BOUNDS(kThreads, kResident<T>) keys_and_queries(Backward p) {
  using E = typename Parts<T>::Element;
  constexpr int kInput = Parts<T>::kInput;
  constexpr int kStatePlane = kTile * kPitch, kRowsPlane = kSpan * kPitch;
  constexpr int kStaged = kSum * kStatePlane + 2 * kInput * kRowsPlane;
  constexpr int kOffers = kSum * Levels<T, kSum>::kPlane, kLevels = kOffers + kSum * kScorePlane;
  constexpr int kFloat = sizeof(float) / sizeof(E);
  SBHAL_SHARED(E, staged, max(kStaged, kLevels + kResults * kFloat));
  SBHAL_SHARED(float, products, kThreads);
  SBHAL_SHARED(float, totals, kThreads);
  SBHAL_SHARED(float, diagonal, kSpan);
  SBHAL_SHARED(float, through, kTile);
  E *state = staged, *grads = state + kSum * kStatePlane, *values = grads + kInput * kRowsPlane;
  const int K = static_cast<int>(p.size.K), V = static_cast<int>(p.size.V), group = static_cast<int>(p.size.group);
  const Place at = place_of(p, blockIdx.x, (K + kTile - 1) / kTile);
  const Span& span = at.span;
  if (!span.written) return;
  const int first = at.tile * kTile, d = first + run_channel();
  const bool inside = d < K;
  const int64_t state_at = (at.slot * p.size.heads + at.head) * p.size.K * p.size.V;
  const float* before = p.states + state_at;
  const float* behind = p.gradients + state_at;
  const RunDecays decays(Gates<T>(p.g, span.batch, at.head), span, d, inside, products);
  Run<T> q(p.k, span, at.head, d, false), k(p.k, span, at.head, d, inside);
  float dq[kRun], dk[kRun] = {}, crossing[kRun] = {}, w[kRun], paths[kRun];
  MmaTile<E> sums[kJobs], owned[kOwned];
  float* const results = reinterpret_cast<float*>(staged + kLevels);
  const Levels<T, kSum> levels = {staged, staged + kOffers, results, totals, decays, owned, q, k, dq, dk, crossing};

  // sums = rows state^T for columns [column, column + kTile)
  const auto multiply_state = [&](const E* rows) {
#pragma unroll
    for (int j = 0; j < kJobs; ++j) {
      const int job = wave() + j * kWaves;
      for (int i = 0; i < kTile; i += 16)
        multiply_parts<kSum, kInput, kSum, Stored::rows, Stored::columns>(
            sums[j], Operand<E>{rows + job / 2 * 16 * kPitch + i, kPitch, kRowsPlane},
            Operand<E>{state + job % 2 * 16 * kPitch + i, kPitch, kStatePlane});
    }
  };
  const auto share_sums = [&] {
#pragma unroll
    for (int j = 0; j < kJobs; ++j) store_result(sums[j], wave() + j * kWaves, results);
  };

  // from the keys, and from the state before the span, to the span's end
#pragma unroll
  for (auto& sum : sums) sum.zero();
  for (int column = 0; column < V; column += kTile) {
    __syncthreads();
    stage_state<kSum>(behind, K, V, first, column, state);
    stage_rows<T>(p.v, p.v_aligned, span, at.head, column, values);
    __syncthreads();
    multiply_state(values);
  }
  __syncthreads();
  share_sums();
  const int row = static_cast<int>(threadIdx.x) / 8;
  float end = 0;
  if (first + row < K)
    for (int i = static_cast<int>(threadIdx.x) % 8; i < V; i += 8)
      end += before[(first + row) * p.size.V + i] * behind[(first + row) * p.size.V + i];
  end = wave_sum<8>(end);
  if (threadIdx.x % 8 == 0) through[row] = end;
  __syncthreads();
  decays.after(kSpan, w);
#pragma unroll
  for (int e = 0; e < kRun; ++e) {
    dk[e] = w[e] * levels.result(e);
    paths[e] = dk[e] * k[e];
  }
  add_leaving(kSpan, paths, crossing);
  levels.add_runs(sum_run(paths), 0, run());
#pragma unroll
  for (float& sum : crossing) sum += decays.product(0, kSpan / kRun) * through[run_channel()];

  for (int head = at.head * group; head < (at.head + 1) * group; ++head) {
#pragma unroll
    for (auto& sum : sums) sum.zero();
#pragma unroll
    for (auto& tile : owned) tile.zero();
    for (int column = 0; column < V; column += kTile) {
      __syncthreads();
      stage_state<kSum>(before, K, V, first, column, state);
      stage_rows<T>(p.grad_o, p.grad_o_aligned, span, head, column, grads);
      stage_rows<T>(p.v, p.v_aligned, span, at.head, column, values);
      __syncthreads();
      multiply_state(grads);
#pragma unroll
      for (int j = 0; j < kOwned; ++j) {
        const int block = wave() + j * kWaves;
        if (block >= kBlocks) break;
        for (int i = 0; i < kTile; i += 16)
          multiply_parts<kSum, kInput, kInput, Stored::rows, Stored::columns>(
              owned[j], Operand<E>{grads + query_block(block) * 16 * kPitch + i, kPitch, kRowsPlane},
              Operand<E>{values + key_block(block) * 16 * kPitch + i, kPitch, kRowsPlane});
      }
    }
    __syncthreads();
    share_sums();
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const int block = wave() + j * kWaves;
      if (block >= kBlocks) break;
      owned[j].each([&](int i, int column, float& value) {
        value *= p.scale;
        if (block >= 4)
          levels.store_score(block, i, column, value);
        else if (i == column)
          diagonal[block * 16 + i] = value;
      });
    }
    q = Run<T>(p.q, span, head, d, inside);
    __syncthreads();
    decays.until(kSpan, w);
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      const float gradient = w[e] * p.scale * levels.result(e), own = diagonal[run_token() + e];
      paths[e] = gradient * q[e];
      dq[e] = gradient + own * k[e];
      dk[e] += own * q[e];
    }
    add_received(kSpan, paths, crossing);
    levels.add_runs(sum_run(paths), run() + 1, kSpan / kRun);

#pragma unroll 1
    for (int half = 1; half < kSpan; half *= 2) levels.add(half);
    store_run<T>(p.grad_q, span, head, d, inside, dq);
  }
  store_run<T>(p.grad_k, span, at.head, d, inside, dk);

  if (p.g.ndim == 4) {
    if (p.g.dtype == DType::f32)
      store_run<float>(p.grad_g, span, at.head, d, inside, crossing);
    else
      store_run<T>(p.grad_g, span, at.head, d, inside, crossing);
    return;
  }
#pragma unroll
  for (int e = 0; e < kRun; ++e) {
    const float sum = wave_sum<kTile>(inside ? crossing[e] : 0);
    const int token = run_token() + e;
    if (run_channel() == 0 && token < span.written)
      p.gates[((at.tile * p.size.batch + span.batch) * p.size.tokens + span.first + token) * p.size.heads + at.head] =
          sum;
  }
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
