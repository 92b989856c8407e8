// gated_linear_attention_backward. Spans of 64 tokens are independent once the state before each and the gradient of
// the state behind it are known, so that every kernel but a scan over spans fills the device:
//
//   add_to_states     each span's own term of the states and of their gradients, and its decay
//   pass_states       the scan: turns those terms into the states before and the gradients behind each span, in place
//   keys_and_queries  a span's dq, dk and dg for one tile of channels, by levels, which the first header explains
//   values            a span's dv; its scores come from the same levels
//   sum_gates         adds the tiles' shares of dg where gates are per head
//
// The query heads of a key/value head are one block's: the state, keys, values and gates are theirs together.
#include "gated_linear_attention_gradient_gpu.h"
#include "gated_linear_attention_gradient_keys_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kColumns = 64;  // columns of v that a block of add_to_states sums
constexpr int kSubtiles = 4;  // tiles of columns that a block of values sums
constexpr int kAhead = 8;     // spans whose terms are read before they are needed

// ---- the states

// A block: one span of a key/value head, 32 channels by 64 columns. Registers: the run of each thread (RunDecays), and
// kJobs tiles a wavefront of the sums [32][64]. Shared: decayed [32 channels][64 tokens], rows [64 tokens][64 columns],
// products. Each head: barrier, stage both, barrier, sums += decayed rows; the first waits for the readers of the head
// before, the second shows what was staged.
//
// X^T rows, 32 channels by 64 columns: the keys with the decays after them and v, or the queries with those until them
// and grad_o. What enters a state is not rounded: three bfloat16 hold a float32.
template <class T, bool backwards> __global__ void SBHAL_BOUNDS(kThreads, 2) add_to_states(Backward p) {
  using E = typename Parts<T>::Element;
  constexpr int kInput = Parts<T>::kInput, kExact = kExactParts<T>;
  constexpr int kPlane = kTile * kSpanPitch, kRowsPlane = kSpan * (kColumns + 8);
  SBHAL_SHARED(E, decayed, kExact * kPlane);
  SBHAL_SHARED(E, rows, kInput * kRowsPlane);
  SBHAL_SHARED(float, products, kThreads);
  const int tiles = static_cast<int>(ceil_div(p.size.K, kTile)), parts = static_cast<int>(ceil_div(p.size.V, kColumns));
  const Place at = place_of(p, blockIdx.x / parts, tiles);
  const int first = static_cast<int>(blockIdx.x) % parts * kColumns, d = at.tile * kTile + run_channel();
  if (!at.span.written) return;
  const bool inside = d < p.size.K;
  const RunDecays decays(Gates<T>(p.g, at.span.batch, at.head), at.span, d, inside, products);
  float w[kRun];
  if (backwards)
    decays.until(kSpan, w);
  else
    decays.after(kSpan, w);
  MmaTile<E> sums[kJobs];
#pragma unroll
  for (auto& sum : sums) sum.zero();
  for (int64_t m = 0; m < (backwards ? p.size.group : 1); ++m) {
    const int head = static_cast<int>(backwards ? at.head * p.size.group + m : at.head);
    const Run<T> source(backwards ? p.q : p.k, at.span, head, d, inside);
    float x[kRun];
#pragma unroll
    for (int e = 0; e < kRun; ++e) x[e] = source[e] * (backwards ? w[e] * p.scale : w[e]);
    __syncthreads();
    store_parts<kExact>(x, decayed + run_channel() * kSpanPitch + run_token(), kPlane);
    stage_rows<T, kColumns>(backwards ? p.grad_o : p.v, backwards ? p.grad_o_aligned : p.v_aligned, at.span, head,
                            first, rows);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kJobs; ++j) {
      const int job = wave() + j * kWaves;
      for (int t = 0; t < kSpan; t += 16)
        multiply_parts<kExact, kExact, kInput, Stored::rows, Stored::rows>(
            sums[j], Operand<E>{decayed + job / 4 * 16 * kSpanPitch + t, kSpanPitch, kPlane},
            Operand<E>{rows + t * (kColumns + 8) + job % 4 * 16, kColumns + 8, kRowsPlane});
    }
  }
  const int64_t base = at.slot * p.size.heads + at.head;
  float* to = (backwards ? p.gradients : p.states) + base * p.size.K * p.size.V;
#pragma unroll
  for (int j = 0; j < kJobs; ++j) {
    const int job = wave() + j * kWaves;
    sums[j].each([&](int row, int column, float& value) {
      const int64_t channel = at.tile * kTile + job / 4 * 16 + row, i = first + job % 4 * 16 + column;
      if (channel < p.size.K && i < p.size.V) to[channel * p.size.V + i] = value;
    });
  }
  if (!backwards && first == 0 && run() == 0 && inside) p.decays[base * p.size.K + d] = decays.product(0, kSpan / kRun);
}

// One thread an element of one sequence's states, and one of their gradients, in a register from span to span: forwards
// in blocks of even number, backwards in odd ones. It reads the terms and decays of eight spans before it replaces
// those terms by states. Threads share nothing: no barrier.
__global__ void __launch_bounds__(kThreads) pass_states(Backward p) {
  const int64_t elements = p.size.K * p.size.V, parts = ceil_div(elements, kThreads);
  const bool backwards = blockIdx.x % 2;
  const int64_t sequence_and_head = blockIdx.x / 2 / parts;
  const int64_t n = sequence_and_head / p.size.heads, head = sequence_and_head % p.size.heads;
  const int64_t element = blockIdx.x / 2 % parts * kThreads + threadIdx.x, d = element / max<int64_t>(1, p.size.V);
  if (element >= elements) return;
  const int64_t tokens = defined(p.cu_seqlens) ? offset(p, n + 1) - offset(p, n) : p.size.tokens;
  const int64_t spans = ceil_div(max<int64_t>(0, tokens), kSpan);
  const Tensor& from = backwards ? p.grad_final_state : p.initial_state;
  const auto place = [&](const Tensor& x) {
    return n * x.stride[0] + head * x.stride[1] + d * x.stride[2] + element % p.size.V;
  };
  float state = defined(from) ? float_at(from, place(from)) : 0;
  const int64_t last = first_slot(p, n) + spans - 1, step = backwards ? -1 : 1;
  const int64_t slot = backwards ? last : first_slot(p, n);
  float* terms = backwards ? p.gradients : p.states;
  for (int64_t i = 0; i < spans; i += kAhead) {
    float term[kAhead], decay[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t base = (slot + step * min(i + a, spans - 1)) * p.size.heads + head;
      term[a] = terms[base * elements + element];
      decay[a] = p.decays[base * p.size.K + d];
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a >= spans) break;
      terms[((slot + step * (i + a)) * p.size.heads + head) * elements + element] = state;
      state = decayed(state, decay[a]) + term[a];
    }
  }
  if (!backwards || !defined(p.initial_state)) return;
  const Tensor& to = p.grad_initial_state;
  if (to.dtype == DType::f32)
    static_cast<float*>(to.data)[place(to)] = state;
  else if (to.dtype == DType::bf16)
    static_cast<bf16*>(to.data)[place(to)] = from_float<bf16>(state);
  else
    static_cast<f16*>(to.data)[place(to)] = from_float<f16>(state);
}

// ---- dv

template <class T> struct Scores {
  using E = typename Parts<T>::Element;
  static constexpr int kSum = Parts<T>::kSum, kPlane = kSpan * kPitch;

  E* offers;  // what tokens offer at a level, [token][channel]
  MmaTile<E> (&owned)[kOwned];

  SBHAL_INLINE void offer(const float (&x)[kRun]) const {
#pragma unroll
    for (int e = 0; e < kRun; ++e) store_parts<kSum>(x[e], offers + (run_token() + e) * kPitch + run_channel(), kPlane);
  }
  SBHAL_INLINE Operand<E> rows(int block, int channel) const {
    return {offers + block * 16 * kPitch + channel, kPitch, kPlane};
  }
  SBHAL_INLINE void add_product(MmaTile<E>& to, int query, int key) const {
#pragma unroll
    for (int i = 0; i < kTile; i += 16)
      multiply_parts<kSum, kSum, kSum, Stored::rows, Stored::columns>(to, rows(query, i), rows(key, i));
  }

  SBHAL_INLINE void add(int half, const RunDecays& decays, const Run<T>& q, const Run<T>& k) const {
    float x[kRun];
    weigh(half, decays, x);
#pragma unroll
    for (int e = 0; e < kRun; ++e) x[e] *= receives(half, e) ? q[e] : k[e];
    offer(x);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const int i = wave() + j * kWaves;
      if (half < 16 ? i >= 4 : half == 16 ? i < 4 || i >= 6 : i < 6 || i >= kBlocks) continue;
      MmaTile<E> all;
      all.zero();
      add_product(all, query_block(i), key_block(i));
#pragma unroll
      for (int e = 0; e < MmaTile<E>::Unit::kElements; ++e) {
        const bool met = half >= 16 || meet(half, MmaTile<E>::Unit::row(e), MmaTile<E>::Unit::column(e));
        owned[j].c[e] += met ? all.c[e] : 0;
      }
    }
    __syncthreads();
  }
};

// A block: dv of one span of a key/value head, four tiles of 32 columns.
//
//   registers  of a wavefront: kJobs tiles of sums [64 tokens][32] for each of the four, kOwned of the ten of scores
//   staged     in turn offers [64 tokens][32 channels] and the state's gradient [32][32]; offers alone; ten scores
//              [16 keys][16 queries] and grad_o [64][32]; results [64][32] float
//   shared     products [8 runs][32 channels]; diagonal [64], each token's q k
//
// Each 32 channels: offers; each tile of columns (stage state | sums |). Each query head: diagonal = 0 | each 32
// channels: six levels (offers | scores |); scores out; each tile of columns (stage grad_o | sums |). Each tile of
// columns: results = sums | rows out |. Every | is a barrier: it shows what was staged, or waits for its readers before
// the place is another's. RunDecays has one more, which shows products.
template <class T> __global__ void SBHAL_BOUNDS(kThreads, kResident<T>) values(Backward p) {
  using E = typename Parts<T>::Element;
  constexpr int kInput = Parts<T>::kInput, kSum = Parts<T>::kSum;
  constexpr int kOffersPlane = Scores<T>::kPlane, kStatePlane = kTile * kPitch;
  constexpr int kWithState = kSum * (kOffersPlane + kStatePlane);
  constexpr int kWithScores = kSum * kScorePlane + kInput * kOffersPlane;
  constexpr int kFloat = sizeof(float) / sizeof(E);
  SBHAL_SHARED(E, staged, max(max(kWithState, kWithScores), kResults * kFloat));
  float* const results = reinterpret_cast<float*>(staged);
  SBHAL_SHARED(float, products, kThreads);
  SBHAL_SHARED(float, diagonal, kSpan);
  E *state = staged + kSum * kOffersPlane, *scores = staged, *grads = staged + kSum * kScorePlane;
  const int K = static_cast<int>(p.size.K), V = static_cast<int>(p.size.V), group = static_cast<int>(p.size.group);
  const Place at = place_of(p, blockIdx.x, (V + kSubtiles * kTile - 1) / (kSubtiles * kTile));
  const Span& span = at.span;
  if (!span.written) return;
  const int first = at.tile * kSubtiles * kTile;
  const float* behind = p.gradients + (at.slot * p.size.heads + at.head) * p.size.K * p.size.V;
  MmaTile<E> sums[kSubtiles][kJobs], owned[kOwned];
  const Scores<T> levels = {staged, owned};
#pragma unroll
  for (auto& subtile : sums)
#pragma unroll
    for (auto& sum : subtile) sum.zero();

  // to the span's end
  for (int tile = 0; tile < K; tile += kTile) {
    const int d = tile + run_channel();
    const RunDecays decays(Gates<T>(p.g, span.batch, at.head), span, d, d < K, products);
    const Run<T> k(p.k, span, at.head, d, d < K);
    float x[kRun];
    decays.after(kSpan, x);
#pragma unroll
    for (int e = 0; e < kRun; ++e) x[e] *= k[e];
    levels.offer(x);
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i) {
      if (first + i * kTile >= V) break;
      stage_state<kSum>(behind, K, V, tile, first + i * kTile, state);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kJobs; ++j) {
        const int job = wave() + j * kWaves;
        for (int c = 0; c < kTile; c += 16)
          multiply_parts<kSum, kSum, kSum, Stored::rows, Stored::rows>(
              sums[i][j], levels.rows(job / 2, c), Operand<E>{state + c * kPitch + job % 2 * 16, kPitch, kStatePlane});
      }
      __syncthreads();
    }
  }

  for (int head = at.head * group; head < (at.head + 1) * group; ++head) {
#pragma unroll
    for (auto& tile : owned) tile.zero();
    if (threadIdx.x < kSpan) diagonal[threadIdx.x] = 0;
    __syncthreads();
    for (int tile = 0; tile < K; tile += kTile) {
      const int d = tile + run_channel();
      const RunDecays decays(Gates<T>(p.g, span.batch, at.head), span, d, d < K, products);
      const Run<T> q(p.q, span, head, d, d < K), k(p.k, span, at.head, d, d < K);
#pragma unroll
      for (int e = 0; e < kRun; ++e) {
        const float own = wave_sum<kTile>(q[e] * k[e]);
        if (run_channel() == 0) diagonal[run_token() + e] += own;
      }
#pragma unroll 1
      for (int half = 1; half < kSpan; half *= 2) levels.add(half, decays, q, k);
    }
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const int i = wave() + j * kWaves;
      if (i >= kBlocks) break;
      owned[j].each([&](int row, int column, float& value) {  // stored transposed: dv sums over queries
        const float kept = i >= 4 || row > column ? value : row == column ? diagonal[i * 16 + row] : 0;
        store_parts<kSum>(kept * p.scale, scores + (i * 16 + column) * kScorePitch + row, kScorePlane);
      });
    }
#pragma unroll
    for (int i = 0; i < kSubtiles; ++i) {
      if (first + i * kTile >= V) break;
      stage_rows<T>(p.grad_o, p.grad_o_aligned, span, head, first + i * kTile, grads);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kJobs; ++j) {
        const int job = wave() + j * kWaves, key = job / 2;
        for (int query = key; query < 4; ++query)
          multiply_parts<kSum, kSum, kInput, Stored::rows, Stored::rows>(
              sums[i][j], Operand<E>{scores + score_block(query, key) * 16 * kScorePitch, kScorePitch, kScorePlane},
              Operand<E>{grads + query * 16 * kPitch + job % 2 * 16, kPitch, kOffersPlane});
      }
      __syncthreads();
    }
  }

#pragma unroll
  for (int i = 0; i < kSubtiles; ++i) {
    const int column = first + i * kTile;
    if (column >= V) break;
#pragma unroll
    for (int j = 0; j < kJobs; ++j) store_result(sums[i][j], wave() + j * kWaves, results);
    __syncthreads();
    const int token = static_cast<int>(threadIdx.x) / 4, c = static_cast<int>(threadIdx.x) % 4 * 8;
    T out[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) out[e] = from_float<T>(results[token * kResultPitch + c + e]);
    if (token < span.written)
      store_part(row_of<T>(p.grad_v, span.batch, span.first + token, at.head) + column + c, min(V - column - c, 8),
                 p.grad_v_aligned, out);
    __syncthreads();
  }
}

// ---- dg of gates per head

// One thread an element of [B, T, heads]: it adds the shares [tiles][B, T, heads] in the tiles' order. No barrier.
template <class G> __global__ void __launch_bounds__(kThreads) sum_gates(Backward p) {
  const int64_t size = p.size.batch * p.size.tokens * p.size.heads;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
  for (int64_t tile = 0; tile < ceil_div(p.size.K, kTile); ++tile) sum += p.gates[tile * size + i];
  static_cast<G*>(p.grad_g.data)[i] = from_float<G>(sum);
}

// ---- host

int64_t plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& initial_state,
             const Tensor& cu_seqlens, const Tensor& grad_o, const Tensor& grad_final_state, double, bool) {
  const Sizes s = check_backward(q, k, v, g, initial_state, cu_seqlens, grad_o, grad_final_state);
  const int64_t slots = slots_of(s, cu_seqlens) * s.heads;
  const int64_t gates = g.ndim == 3 ? ceil_div(s.K, kTile) * s.batch * s.tokens * s.heads : 0;
  return 4 * (slots * s.K * (2 * s.V + 1) + gates);
}

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& initial_state,
            const Tensor& cu_seqlens, const Tensor& grad_o, const Tensor& grad_final_state, double scale, bool,
            const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v, const Tensor& grad_g,
            const Tensor& grad_initial_state, const Launch& launch) {
  const Sizes s = check_backward(q, k, v, g, initial_state, cu_seqlens, grad_o, grad_final_state);
  Backward p = {};
  p.size = s, p.scale = static_cast<float>(scale);
  p.q = q, p.k = k, p.v = v, p.g = g, p.initial_state = initial_state, p.cu_seqlens = cu_seqlens;
  p.grad_o = grad_o, p.grad_final_state = grad_final_state, p.grad_initial_state = grad_initial_state;
  p.grad_q = grad_q, p.grad_k = grad_k, p.grad_v = grad_v, p.grad_g = grad_g;
  const int64_t pairs = slots_of(s, cu_seqlens) * s.heads;
  p.states = reinterpret_cast<float*>(launch.workspace);
  p.gradients = p.states + pairs * s.K * s.V;
  p.decays = p.gradients + pairs * s.K * s.V;
  p.gates = p.decays + pairs * s.K;
  const int64_t tiles = ceil_div(s.K, kTile);
  with_float(q.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    p.v_aligned = rows_aligned(v, sizeof(T)), p.grad_o_aligned = rows_aligned(grad_o, sizeof(T));
    p.grad_v_aligned = rows_aligned(grad_v, sizeof(T));
    const int64_t blocks = pairs * tiles * ceil_div(s.V, kColumns);
    launch_kernel("gated_linear_attention_backward: states", add_to_states<T, false>, blocks, kThreads, launch, p);
    launch_kernel("gated_linear_attention_backward: their gradients", add_to_states<T, true>, blocks, kThreads, launch,
                  p);
    launch_kernel("gated_linear_attention_backward: pass_states", pass_states,
                  2 * s.sequences * s.heads * ceil_div(s.K * s.V, kThreads), kThreads, launch, p);
    constexpr int kSum = Parts<T>::kSum, kExact = kExactParts<T>;
    launch_kernel("gated_linear_attention_backward: keys_and_queries",
                  g.dtype == DType::f32 ? keys_and_queries<T, kExact> : keys_and_queries<T, kSum>, pairs * tiles,
                  kThreads, launch, p);
    launch_kernel("gated_linear_attention_backward: values", values<T>, pairs * ceil_div(s.V, kSubtiles * kTile),
                  kThreads, launch, p);
  });
  if (g.ndim == 3)
    with_float(g.dtype, [&](auto* type) {
      using G = typename ElementOf<decltype(type)>::type;
      launch_kernel("gated_linear_attention_backward: sum_gates", sum_gates<G>,
                    ceil_div(s.batch * s.tokens * s.heads, kThreads), kThreads, launch, p);
    });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(gated_linear_attention_backward, 1, plan, launch)
