// The scores inside chunks, A_ij = sum_d q_id k_jd (decays of tokens j + 1 .. i), for all chunks at once and once for
// all columns of the values.
//
// What decays a key depends on both tokens, but not on the query head: for one token i the rows k_j decayed until i are
// an operand that all heads of the group multiply, one head a row. A channel's walk from j = i down to 0 gives it in
// one multiplication a token.
#pragma once
#include "gated_linear_attention_chunk_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kScoreThreads = 256;
constexpr int64_t kScores = kChunk * kChunk;

// Scores in the workspace: [batch][head][chunk][part][head of the group][i][j], i outside of j..15 being 0.
template <class T> struct Scores {
  using E = typename Parts<T>::Element;
  static constexpr int kParts = Parts<T>::kInput;
  E* data;
  int64_t heads, chunks, group;

  static int64_t bytes(const Sizes& s) {
    const int64_t each = kParts * kScores * static_cast<int64_t>(sizeof(E));
    return s.batch * s.heads * ceil_div(s.tokens, kChunk) * s.group * each;
  }
  SBHAL_BOTH int64_t plane() const { return group * kScores; }
  SBHAL_INLINE E* at(int64_t batch, int64_t head, int64_t chunk) const {
    return data + ((batch * heads + head) * chunks + chunk) * kParts * plane();
  }
};

// A block: the scores of one chunk of a key/value head, 16 query heads at a time; each wavefront takes kTokens of the
// 16 query tokens i, one a round.
//
//   registers      of each of the wavefront's tokens: sums [16 heads][16 tokens j]
//   alpha, keys    [16 tokens][32 channels] of the slab, for all wavefronts
//   queries        [16 heads][32] of token i, the wavefront's own
//   decayed_keys   [16 tokens j][32] the wavefront's own; rows behind i are left over and their sums dropped
//
// A slab of 32 channels: barrier, stage alpha and keys, barrier; each round: a lane walks down one channel's keys, all
// stage the queries, wave_sync, sums += queries decayed_keys^T, wave_sync. The first of each pair waits for the readers
// of what was there (of the wavefront's own: the last of the round before), the second shows what is.
template <class T> __global__ void SBHAL_BOUNDS(kScoreThreads, 4)
    scores_kernel(Tensor q, Tensor k, Tensor g, Scores<T> scores, int K, bool aligned) {
  constexpr int kWaves = kScoreThreads / SBHAL_WAVE, kTokens = kChunk / kWaves;
  constexpr int kSlab = 32, kPitch = kSlab + 8, kTile = kChunk * kPitch;
  SBHAL_SHARED(float, alpha, kChunk* kSlab);
  SBHAL_SHARED(T, keys, kChunk * kSlab);
  SBHAL_SHARED(T, tiles, 2 * kWaves * kTile);
  T* const queries = tiles + wave() * 2 * kTile;
  T* const decayed_keys = queries + kTile;

  const int64_t chunk = blockIdx.x % scores.chunks, head = blockIdx.x / scores.chunks % scores.heads;
  const int64_t batch = blockIdx.x / scores.chunks / scores.heads, first = chunk * kChunk;
  const int tokens = static_cast<int>(min<int64_t>(q.shape[1] - first, kChunk)), group = static_cast<int>(scores.group);
  const Gates<T> gates(g, batch, head);
  typename Parts<T>::Element* const out = scores.at(batch, head, chunk);
  // of each two neighbouring rounds one takes the early tokens in turn, the other the late ones: equal work for all
  const auto token_of = [](int round) { return round * kWaves + (round % 2 ? kWaves - 1 - wave() : wave()); };

  for (int first_head = 0; first_head < group; first_head += kChunk) {
    const int heads = min(group - first_head, kChunk);
    MmaTile<T> sums[kTokens];
#pragma unroll
    for (auto& tile : sums) tile.zero();
    for (int slab = 0; slab < K; slab += kSlab) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < kChunk * kSlab; i += kScoreThreads) {
        const int token = i / kSlab, d = slab + i % kSlab;
        const bool inside = token < tokens && d < K;
        alpha[i] = inside ? gates.decay(first + token, d) : 1;
        keys[i] = inside ? row_of<const T>(k, batch, first + token, head)[d] : from_float<T>(0);
      }
      __syncthreads();
#pragma unroll
      for (int round = 0; round < kTokens; ++round) {
        const int i = token_of(round);
        for (int c = lane(); c < kSlab; c += SBHAL_WAVE) {
          float decay = 1;
          for (int j = i; j >= 0; --j) {
            decayed_keys[j * kPitch + c] = from_float<T>(decayed(to_float(keys[j * kSlab + c]), decay));
            decay *= alpha[j * kSlab + c];
          }
        }
        for (int job = lane(); job < heads * (kSlab / 8); job += SBHAL_WAVE) {
          const int h = job / (kSlab / 8), c = job % (kSlab / 8) * 8;
          T x[8];
          load_part(row_of<const T>(q, batch, first + i, head * group + first_head + h) + slab + c,
                    i < tokens ? K - slab - c : 0, aligned, x);
          write_aligned(queries + h * kPitch + c, x);
        }
        wave_sync();
#pragma unroll
        for (int c = 0; c < kSlab; c += 16)
          multiply_parts<1, 1, 1, Stored::rows, Stored::columns>(sums[round], Operand<T>{queries + c, kPitch, 0},
                                                                 Operand<T>{decayed_keys + c, kPitch, 0});
        wave_sync();
      }
    }
#pragma unroll
    for (int round = 0; round < kTokens; ++round) {
      const int i = token_of(round);
      sums[round].each([&](int h, int j, float& sum) {
        if (h < heads)
          store_parts<Scores<T>::kParts>(j <= i ? sum : 0, out + (first_head + h) * kScores + i * kChunk + j,
                                         static_cast<int>(scores.plane()));
      });
    }
  }
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
