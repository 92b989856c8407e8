// Gated linear attention backwards over a span of tokens: what its GPU kernels share.
//
// A gradient is a sum of paths: from a key, or the state before the span, through gates, to a query, or the state after
// it. Between tokens of a span paths are sorted by level: at the level of `half` tokens, spans of 2 * half are cut in
// the middle, tokens of the first half leave (their keys) and tokens of the second receive (their queries). Each pair
// of tokens meets at exactly one level, each token plays one part there, and its weight is the product of the decays
// between it and the middle: a factor, never a quotient, so any gate is safe. The path's weight is the product of its
// two tokens', which makes every level a matrix product; and what crosses a gate is a running sum, over the half, of
// paths that have left before it or will be received behind it: nothing is subtracted.
#pragma once
#include "gated_linear_attention_chunk_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kThreads = 256, kWaves = kThreads / SBHAL_WAVE;
constexpr int kSpan = 64;          // tokens a block looks at
constexpr int kTile = 32;          // channels, or columns of v, that a block stages at once
constexpr int kRun = 8;            // tokens of one channel that a thread holds
constexpr int kJobs = 8 / kWaves;  // 16 x 16 tiles of a span and a tile that a wavefront sums
constexpr int kBlocks = 10;        // 16 x 16 tiles of the scores of a span, those with keys before queries
constexpr int kOwned = (kBlocks + kWaves - 1) / kWaves;  // and how many of them a wavefront sums
static_assert(kSpan * kTile == kRun * kThreads, "every thread holds one run");

// Blocks that a multiprocessor's registers should hold at once; those of float32 need all of them.
template <class T> constexpr int kResident = sizeof(T) == sizeof(float) ? 1 : 2;

// Pitches: those of operands are multiples of 8, and all but the scores', for which there is no room, spread rows over
// the banks of shared memory.
constexpr int kPitch = kTile + 8, kSpanPitch = kSpan + 8, kScorePitch = 16, kResultPitch = kTile + 4;
constexpr int kScorePlane = kBlocks * 16 * kScorePitch, kResults = kSpan * kResultPitch;

struct Backward {
  Sizes size;
  Tensor q, k, v, g, initial_state, cu_seqlens, grad_o, grad_final_state;
  Tensor grad_q, grad_k, grad_v, grad_g, grad_initial_state;
  float scale;
  bool v_aligned, grad_o_aligned, grad_v_aligned;  // rows start on 16 bytes
  // workspace: [slots, heads, K, V] of the state before each span and dL/dS behind it, [slots, heads, K] of its decay,
  // and, where gates are per head, [tiles, B, T, heads] of the tiles' shares of their gradient
  float *states, *gradients, *decays, *gates;
};

// ---- spans. Each has a slot in the workspace, its number plus that of the sequence's first, which leaves room enough:
// sequence n starts in slot begin / kSpan + n if packed. Tokens behind the last sequence count as one more that reads
// nothing, so that their gradients come out as zeros.

struct Span {
  int64_t first;
  int batch, count, written;  // tokens to read, gradients to write
};

SBHAL_BOTH int64_t slots_of(const Sizes& s, const Tensor& cu_seqlens) {
  return cu_seqlens.ndim >= 0 ? s.tokens / kSpan + s.sequences + 1 : s.sequences * ceil_div(s.tokens, kSpan);
}

// Where sequence n begins, or the one before it ends.
SBHAL_INLINE int64_t offset(const Backward& p, int64_t n) { return index_within(p.cu_seqlens, n, p.size.tokens); }
SBHAL_INLINE int64_t first_slot(const Backward& p, int64_t n) {
  return defined(p.cu_seqlens) ? offset(p, n) / kSpan + n : n * ceil_div(p.size.tokens, kSpan);
}

SBHAL_INLINE Span span_at(const Backward& p, int64_t slot) {
  int64_t n = 0, begin = 0, end = p.size.tokens;
  if (defined(p.cu_seqlens)) {
    for (int64_t high = p.size.sequences; n < high;) {  // the last sequence whose first slot is not behind this one
      const int64_t middle = (n + high + 1) / 2;
      first_slot(p, middle) <= slot ? n = middle : high = middle - 1;
    }
    begin = offset(p, n);
    if (n < p.size.sequences) end = offset(p, n + 1);
  } else {
    n = slot / ceil_div(p.size.tokens, kSpan);
  }
  const int64_t first = begin + (slot - first_slot(p, n)) * kSpan;
  const int count = static_cast<int>(max<int64_t>(0, min<int64_t>(end - first, kSpan)));
  return {first, defined(p.cu_seqlens) ? 0 : static_cast<int>(n), n < p.size.sequences ? count : 0, count};
}

struct Place {
  int64_t slot;
  int head, tile;
  Span span;
};

// A block's slot, key/value head and tile, the tile fastest.
SBHAL_INLINE Place place_of(const Backward& p, int64_t block, int tiles) {
  const int64_t slot = block / tiles / p.size.heads;
  return {slot, static_cast<int>(block / tiles % p.size.heads), static_cast<int>(block % tiles), span_at(p, slot)};
}

// ---- a thread's run: kRun tokens of one channel of the block's tile

SBHAL_INLINE int run() { return static_cast<int>(threadIdx.x) / kTile; }
SBHAL_INLINE int run_token() { return run() * kRun; }
SBHAL_INLINE int run_channel() { return static_cast<int>(threadIdx.x) % kTile; }

// Of q or k: as they are stored, which halves the registers that 16 bits take.
template <class T> struct Run {
  uint32_t bits[kRun * sizeof(T) / 4];

  SBHAL_INLINE Run(const Tensor& x, const Span& span, int head, int d, bool inside) : bits{} {
    const T* from = row_of<T>(x, span.batch, span.first + run_token(), head) + d;
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      if (!inside || run_token() + e >= span.count) continue;
      if constexpr (sizeof(T) == 4)
        bits[e] = vendor::as_bits(from[e * x.stride[1]]);
      else
        bits[e / 2] |= static_cast<uint32_t>(from[e * x.stride[1]].bits) << e % 2 * 16;
    }
  }
  SBHAL_INLINE float operator[](int e) const {
    if constexpr (sizeof(T) == 4)
      return vendor::as_float(bits[e]);
    else
      return to_float(T{static_cast<uint16_t>(bits[e / 2] >> e % 2 * 16)});
  }
};

template <class T> SBHAL_INLINE void store_run(const Tensor& x, const Span& span, int head, int d, bool inside,
                                               const float (&from)[kRun]) {
  T* to = row_of<T>(x, span.batch, span.first + run_token(), head) + d;
#pragma unroll
  for (int e = 0; e < kRun; ++e)
    if (inside && run_token() + e < span.written) to[e * x.stride[1]] = from_float<T>(from[e]);
}

// Whether a token of the run is in the second half at a level, and is its half's first or last.
SBHAL_INLINE bool receives(int half, int e) { return (run_token() + e) & half; }
SBHAL_INLINE bool starts(int half, int e) { return ((run_token() + e) & (half - 1)) == 0; }
SBHAL_INLINE bool ends(int half, int e) { return ((run_token() + e + 1) & (half - 1)) == 0; }
// The runs that share a half: [first_run, end_run).
SBHAL_INLINE int first_run(int half) { return run_token() / half * half / kRun; }
SBHAL_INLINE int end_run(int half) { return first_run(half) + max(half / kRun, 1); }

// The span's tile [64 tokens][32 channels]: thread t holds the alphas of tokens 8 (t / kTile) .. + 7 of channel t mod
// kTile; products [8 runs][32 channels] lie in shared memory. The constructor ends with the barrier that shows them:
// whoever makes another one in the same memory needs a barrier between, behind the last use of the first.
struct RunDecays {
  float alpha[kRun];
  const float* products;  // of each run and channel, in shared memory

  template <class T> SBHAL_INLINE RunDecays(const Gates<T>& gates, const Span& span, int d, bool inside, float* shared)
      : products(shared) {
    float all = 1;
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      const int token = run_token() + e;
      alpha[e] = inside && token < span.count ? gates.decay(span.first + token, d) : 1;
      all *= alpha[e];
    }
    shared[threadIdx.x] = all;
    __syncthreads();
  }

  SBHAL_INLINE float product(int from, int end) const {
    float all = 1;
    for (int r = from; r < end; ++r) all *= products[r * kTile + run_channel()];
    return all;
  }
  // Products of the half's decays up to and including each token, and after it.
  SBHAL_INLINE void until(int half, float (&w)[kRun]) const {
    float all = product(first_run(half), run());
#pragma unroll
    for (int e = 0; e < kRun; ++e) w[e] = all = (starts(half, e) ? 1 : all) * alpha[e];
  }
  SBHAL_INLINE void after(int half, float (&w)[kRun]) const {
    float all = product(run() + 1, end_run(half));
#pragma unroll
    for (int e = kRun - 1; e >= 0; --e) {
      w[e] = ends(half, e) ? 1 : all;
      all = w[e] * alpha[e];
    }
  }
};

// The weight of each token at a level: the decays between it and the middle.
SBHAL_INLINE void weigh(int half, const RunDecays& decays, float (&w)[kRun]) {
  float leaving[kRun];
  decays.until(half, w), decays.after(half, leaving);
#pragma unroll
  for (int e = 0; e < kRun; ++e) w[e] = receives(half, e) ? w[e] : leaving[e];
}

// ---- what crosses each gate: the paths that have left before it, and those that are received behind it

SBHAL_INLINE void add_leaving(int half, const float (&paths)[kRun], float (&crossing)[kRun]) {
  float all = 0;
#pragma unroll
  for (int e = 0; e < kRun; ++e) {
    all = starts(half, e) ? 0 : all;
    crossing[e] += all;
    all += paths[e];
  }
}

SBHAL_INLINE void add_received(int half, const float (&paths)[kRun], float (&crossing)[kRun]) {
  float all = 0;
#pragma unroll
  for (int e = kRun - 1; e >= 0; --e) {
    all = (ends(half, e) ? 0 : all) + paths[e];
    crossing[e] += all;
  }
}

SBHAL_INLINE float sum_run(const float (&paths)[kRun]) {
  float all = 0;
#pragma unroll
  for (float path : paths) all += path;
  return all;
}

// ---- operands staged in shared memory

// How many parts hold all of a float32.
template <class T> constexpr int kExactParts = Parts<T>::kSum == 1 ? 1 : 3;

// A block of rows, of `count` rows and `columns` columns that are there, as [rows][width] with zeros for the others.
template <int parts, int rows, int width, class T, class E>
SBHAL_INLINE void stage(const T* from, int64_t stride, int count, int columns, bool aligned, E* to) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * width / 8; i += kThreads) {
    const int row = i / (width / 8), column = i % (width / 8) * 8;
    T raw[8];
    load_part(from + row * stride + column, row < count ? columns - column : 0, aligned, raw);
    E* const place = to + row * (width + 8) + column;
    if constexpr (parts == 1 && sizeof(T) == sizeof(E)) {
      write_aligned(place, raw);
    } else {
      float x[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) x[e] = to_float(raw[e]);
      store_parts<parts>(x, place, rows * (width + 8));
    }
  }
}

// Columns [first, first + width) of one head's rows; none of an absent tensor.
template <class T, int width = kTile, class E>
SBHAL_INLINE void stage_rows(const Tensor& x, bool aligned, const Span& span, int head, int first, E* to) {
  stage<Parts<T>::kInput, kSpan, width>(row_of<T>(x, span.batch, span.first, head) + first, x.stride[1],
                                        defined(x) ? span.count : 0, static_cast<int>(x.shape[3]) - first, aligned, to);
}

// Rows [d, d + kTile) and columns [first, first + kTile) of a state [K, V].
template <int parts, class E> SBHAL_INLINE void stage_state(const float* state, int K, int V, int d, int first, E* to) {
  stage<parts, kTile, kTile>(state + d * static_cast<int64_t>(V) + first, V, K - d, V - first, V % 4 == 0, to);
}

// ---- the tiles of a span's scores: four on the diagonal, two of the level of 16 tokens, four of that of 32:
//
//                   keys 0..15   16..31   32..47   48..63
//   queries 0..15        0
//   queries 16..31       4          1
//   queries 32..47       6          7        2
//   queries 48..63       8          9        5        3

SBHAL_INLINE int query_block(int i) { return i < 4 ? i : i < 6 ? 2 * i - 7 : i / 2 - 1; }
SBHAL_INLINE int key_block(int i) { return i < 4 ? i : i < 6 ? 2 * i - 8 : i % 2; }
SBHAL_INLINE int score_block(int query, int key) {
  return query == key ? query : query / 2 == key / 2 ? 4 + query / 2 : 2 + 2 * query + key;
}

// A tile of results, from where it was summed to [token][channel or column].
template <class E> SBHAL_INLINE void store_result(MmaTile<E>& sum, int job, float* results) {
  sum.each([&](int row, int column, float& value) {
    results[(job / 2 * 16 + row) * kResultPitch + job % 2 * 16 + column] = value;
  });
}

// Whether two tokens of a diagonal tile meet at a level.
SBHAL_INLINE bool meet(int half, int i, int j) { return ((i ^ j) & ~(half - 1)) == half; }

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
