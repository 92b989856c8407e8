// Gated linear attention one token at a time, on a state in memory: what a decode step does once, and what sequences do
// whose heads have more channels than registers hold.
//
// A block serves one key/value head with all its query heads, and kTokenColumns columns of the values. Each thread has
// four neighbouring columns of every kTokenRows-th channel, so that the state is read and written in whole lines, once.
#pragma once
#include "gated_linear_attention_chunk_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kTokenThreads = 256, kTokenColumns = 32, kTokenRows = kTokenThreads * 4 / kTokenColumns;
constexpr int kTokenHeads = kTokenThreads / kTokenColumns;  // query heads at once: one sum a thread at the end
constexpr int kTokenSlab = 128;                             // channels at once

// The block's columns of one head's state [K][V], `columns` of them from `data` on.
struct StateColumns {
  float* data;
  int64_t pitch;
  int K, columns;
  bool aligned;

  SBHAL_INLINE static int row() { return static_cast<int>(threadIdx.x) / (kTokenColumns / 4); }
  SBHAL_INLINE static int column() { return static_cast<int>(threadIdx.x) % (kTokenColumns / 4) * 4; }
  SBHAL_INLINE float* at(int d) const { return data + d * pitch + column(); }
};

// q, k, v, o [B, T, heads, ...]; o is contiguous.
//
// A block of 256 threads has 32 columns of one head's state [K][V]. The state stays in memory; 128 channels of it at a
// time, a slab, are in registers: thread t has columns 4 (t mod 8) .. + 3 of channels t / 8, + 32, + 64, + 96. Shared:
// decays and keys [128], queries [8 heads][128], and partial [wavefronts][8 heads][32 columns].
//
//   each 8 query heads   each slab: read state, barrier, stage decays, keys, queries, barrier, advance and write the
//                        state (the first eight heads only), add to the thread's sums [8 heads][4 columns]
//   then                 add the sums across the wavefront's lanes, partial, barrier, one output a thread
//
// The first barrier waits for the readers of the slab before, the second shows the new one, the third shows partial; a
// last one waits for its readers before the next token. A thread reads no state that another one writes.
template <class T> struct Token {
  const Tensor &q, &k, &v, &g, &o;
  int64_t batch, token, head;
  int group, column;
  float scale;

  SBHAL_INLINE void advance(const StateColumns& state) const {
    constexpr int kWaves = kTokenThreads / SBHAL_WAVE, kSteps = kTokenSlab / kTokenRows;
    SBHAL_SHARED(float, decays, kTokenSlab);
    SBHAL_SHARED(float, keys, kTokenSlab);
    SBHAL_SHARED(float, queries, kTokenHeads* kTokenSlab);
    SBHAL_SHARED(float, partial, kWaves* kTokenThreads);
    const Gates<T> gates(g, batch, head);
    const int thread = static_cast<int>(threadIdx.x), count = state.columns - state.column();
    float value[4];
#pragma unroll
    for (int c = 0; c < 4; ++c)
      value[c] = c < count ? to_float(row_of<const T>(v, batch, token, head)[column + state.column() + c]) : 0;

    for (int first_head = 0; first_head < group; first_head += kTokenHeads) {
      const int heads = min(group - first_head, kTokenHeads);
      const int64_t query_head = head * group + first_head;
      float sums[kTokenHeads][4] = {};
      for (int first = 0; first < state.K; first += kTokenSlab) {
        float s[kSteps][4];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const int d = first + step * kTokenRows + state.row();
          load_part(state.at(d), d < state.K ? count : 0, state.aligned, s[step]);
        }
        __syncthreads();
        for (int i = thread; i < kTokenSlab; i += kTokenThreads) {
          const bool there = first + i < state.K;
          decays[i] = there ? gates.decay(token, first + i) : 1;
          keys[i] = there ? to_float(row_of<const T>(k, batch, token, head)[first + i]) : 0;
        }
#pragma unroll 1
        for (int i = thread; i < heads * kTokenSlab; i += kTokenThreads) {
          const int h = i / kTokenSlab, d = first + i % kTokenSlab;
          queries[i] = d < state.K ? scale * to_float(row_of<const T>(q, batch, token, query_head + h)[d]) : 0;
        }
        __syncthreads();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const int row = step * kTokenRows + state.row(), d = first + row;
          if (first_head == 0) {
#pragma unroll
            for (int c = 0; c < 4; ++c) s[step][c] = decayed(s[step][c], decays[row]) + keys[row] * value[c];
            store_part(state.at(d), d < state.K ? count : 0, state.aligned, s[step]);
          }
#pragma unroll
          for (int h = 0; h < kTokenHeads; ++h) {
            const float x = h < heads ? queries[h * kTokenSlab + row] : 0;
#pragma unroll
            for (int c = 0; c < 4; ++c) sums[h][c] += x * s[step][c];
          }
        }
      }
#pragma unroll
      for (int h = 0; h < kTokenHeads; ++h) {
        if (h < heads)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            float sum = sums[h][c];
#pragma unroll
            for (int mask = SBHAL_WAVE / 2; mask >= kTokenColumns / 4; mask /= 2) sum += shuffle_xor(sum, mask);
            if (lane() < kTokenColumns / 4)
              partial[wave() * kTokenThreads + h * kTokenColumns + state.column() + c] = sum;
          }
      }
      __syncthreads();
      const int h = thread / kTokenColumns, c = thread % kTokenColumns;
      if (h < heads && c < state.columns) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWaves; ++w) sum += partial[w * kTokenThreads + thread];
        row_of<T>(o, batch, token, query_head + h)[column + c] = from_float<T>(sum);
      }
    }
    __syncthreads();
  }

  // Zeros for a token that is no token.
  SBHAL_INLINE void skip(int columns) const {
    for (int i = static_cast<int>(threadIdx.x); i < group * kTokenColumns; i += kTokenThreads)
      if (i % kTokenColumns < columns)
        row_of<T>(o, batch, token, head * group + i / kTokenColumns)[column + i % kTokenColumns] = from_float<T>(0);
  }
};

// ---- whole sequences

struct Recurrence {
  Tensor q, k, v, g, initial_state, cu_seqlens, o, final_state;
  Sizes size;
  float* states;  // [n][head][K][V]
  float scale;
  bool output_final_state;
};

// A block: 32 columns of one key/value head's state in the workspace, through all tokens of a sequence, one by one as
// the picture above Token has it. The same thread writes the first state, advances it and copies the last one.
template <class T> __global__ void __launch_bounds__(kTokenThreads) recurrence_kernel(Recurrence p) {
  const int64_t parts = ceil_div(p.size.V, kTokenColumns), part = blockIdx.x % parts;
  const int64_t head = blockIdx.x / parts % p.size.heads, n = blockIdx.x / parts / p.size.heads;
  const int column = static_cast<int>(part) * kTokenColumns, V = static_cast<int>(p.size.V);
  const int64_t offset = (n * p.size.heads + head) * p.size.K * p.size.V + column;
  const StateColumns state = {p.states + offset, p.size.V, static_cast<int>(p.size.K), min(V - column, kTokenColumns),
                              V % 4 == 0};
  // f(channel, column of V) for the elements that the thread has
  const auto each = [&](const auto& f) {
    for (int d = state.row(); d < state.K; d += kTokenRows)
      for (int c = state.column(); c < min(state.column() + 4, state.columns); ++c) f(d, c);
  };
  const Tensor& initial = p.initial_state;
  each([&](int d, int c) {
    state.data[d * state.pitch + c] =
        defined(initial)
            ? float_at(initial, n * initial.stride[0] + head * initial.stride[1] + d * initial.stride[2] + column + c)
            : 0;
  });
  const Sequence sequence = sequence_of(p.size.tokens, p.cu_seqlens, n);
  for (int64_t t = sequence.begin; t < sequence.end; ++t)
    Token<T>{p.q, p.k, p.v, p.g, p.o, sequence.batch, t, head, static_cast<int>(p.size.group), column, p.scale}.advance(
        state);
  if (p.output_final_state)
    each([&](int d, int c) {
      static_cast<float*>(p.final_state.data)[offset + d * state.pitch + c] = state.data[d * state.pitch + c];
    });
}

template <class T> void launch_recurrence(const Recurrence& p, const Launch& launch) {
  launch_kernel("gated_linear_attention recurrence", recurrence_kernel<T>,
                p.size.sequences * p.size.heads * ceil_div(p.size.V, kTokenColumns), kTokenThreads, launch, p);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
