// What the GPU kernels of spike_linear and its gradient share: a block's tile of rows by outputs, and its exact group
// sums from the matrix units.
//
// An integer is 256 * high + low, and both halves are exact in bfloat16, as are sums of their products in float32: over
// a group they stay within 2^22. So every vendor's matrix unit multiplies integers of 16 bits, and the one instruction
// that all of them have is enough. Halves that are zero throughout, as of counts and codes of 8 bits, are not
// multiplied.
#pragma once
#include "gpu/mma.h"
#include "gpu/pack.h"
#include "spike_linear.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;           // rows, and outputs, of a block
constexpr int kStep = kLeastGroup;  // codes of each that are in shared memory at once
constexpr int kTogether = 8;        // codes that a thread loads at once
constexpr int kPitch = kStep + 8;   // of operands, against bank conflicts
constexpr int kSquarePitch = kTile + 1;
constexpr int kSquare = kTile * kSquarePitch;
static_assert(kTile * kStep == kThreads * kTogether, "a thread loads one pack of each operand");

using Products = MmaTile<bf16>;
constexpr int kElements = Products::Unit::kElements;
constexpr int kTiles = kTile * kTile / kThreads / kElements;  // of a wavefront

// Threads side by side. Memory that lies so that packs can be read is said to be in packs.
struct Problem {
  Layer layer;
  Tensor counts, weight, scales;
  bool counts_in_packs, weight_in_packs;
};

inline Problem problem_of(const Tensor& counts, const Tensor& weight, const Tensor& scales, const Layer& layer) {
  const int64_t code = is_bytes(weight) ? 1 : 2, whole = 16 / code;  // vectors take 16 bytes of codes at once
  return {layer,
          counts,
          weight,
          scales,
          packs_at(counts, 2, kTogether) && (layer.counts.count <= 1 || layer.counts.stride % kTogether == 0),
          packs_at(weight, code, whole) && (layer.outputs <= 1 || weight.stride[0] % whole == 0)};
}

SBHAL_INLINE void put(const Tensor& t, int64_t i, float value) {
  if (t.dtype == DType::f32)
    static_cast<float*>(t.data)[i] = value;
  else if (t.dtype == DType::bf16)
    static_cast<bf16*>(t.data)[i] = from_float<bf16>(value);
  else
    static_cast<f16*>(t.data)[i] = from_float<f16>(value);
}
SBHAL_INLINE float threshold_at(const Tensor& v_threshold, const Layer& layer, int64_t row) {
  return static_cast<const float*>(v_threshold.data)[row * layer.thresholds.stride];
}

template <int count, class T> SBHAL_INLINE Pack<T, count> load_codes(const T* p, bool in_packs) {
  if (in_packs) return load_pack<count>(p);
  Pack<T, count> codes;
#pragma unroll
  for (int i = 0; i < count; ++i) codes.at[i] = p[i];
  return codes;
}

// Writes both halves; whether any high one is not zero.
template <class T> SBHAL_INLINE bool split(const Pack<T, kTogether>& codes, bf16* low, bf16* high) {
  Pack<bf16, kTogether> lows, highs;
  bool beyond = false;
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int code = codes.at[i], upper = (code + 128) >> 8;
    lows.at[i] = from_float<bf16>(static_cast<float>(code - 256 * upper));
    highs.at[i] = from_float<bf16>(static_cast<float>(upper));
    beyond = beyond || upper != 0;
  }
  store_pack(low, lows);
  if (sizeof(T) > 1) store_pack(high, highs);
  return beyond;
}

// A block's operands in shared memory.
struct Operands {
  bf16 *counts, *counts_high, *codes, *codes_high;
  float* scales;  // of the block's outputs for the group at hand
  int* beyond;    // of each wavefront, whether it saw a high half of counts (1), of codes (2)
};

// The tile of rows [row, row + kTile) by outputs [column, column + kTile); past the ends it is zeros.
//
//   registers  of a wavefront: kTiles of the sixteen 16 x 16 tiles of [64 rows][64 outputs], four across: sums of low
//              halves, of low by high ones and, where codes have 16 bits, of high ones; of a thread: the eight counts
//              and codes of the next step that it stages
//   counts     [2 halves][64 rows][32] and codes [2 halves][64 outputs][32] of a step, bfloat16, pitch kPitch
//   scales     [64] of the group; beyond: of each wavefront, which high halves it saw
//
// A step of 32 codes: barrier, both operands from registers to shared memory, barrier, ask for the next step, multiply.
// The first barrier waits for the readers of the step before, and of the scales of the group before; the second shows
// the operands, the scales and what is beyond. f runs before the next barrier, so it may read the scales.
template <class Code> struct Tile {
  const Problem& p;
  const Operands& shared;
  int64_t row, column;

  // Where tile j of this wavefront lies in the block's.
  SBHAL_INLINE static int row_of(int j) { return (wave() * kTiles + j) / kAcross * 16; }
  SBHAL_INLINE static int column_of(int j) { return (wave() * kTiles + j) % kAcross * 16; }

  // Calls f(exact sums of group g, as kTiles tiles of float) for every group of [first, end), with their scales in
  // shared memory. Every thread of the block must make the call.
  template <class F> SBHAL_INLINE void each_group(int first, int end, const F& f) const {
    const int steps = static_cast<int>(p.layer.group) / kStep;
    Pack<int16_t, kTogether> counts = {};
    Pack<Code, kTogether> codes = {};
    if (first < end) load(first * steps, counts, codes);
    for (int g = first; g < end; ++g) {
      Products low[kTiles], cross[kTiles], top[sizeof(Code) > 1 ? kTiles : 1];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        low[j].zero(), cross[j].zero();
        if (sizeof(Code) > 1) top[j].zero();
      }
      for (int s = 0; s < steps; ++s) {
        __syncthreads();
        const int beyond = store(counts, codes, s == 0 ? g : -1);
        __syncthreads();
        if (g * steps + s + 1 < end * steps) load(g * steps + s + 1, counts, codes);
        multiply(seen_by_all(beyond), low, cross, top);
      }
      f(g, join(low, cross, top));
    }
  }

  struct Sums {
    Products tile[kTiles];
  };

 private:
  static constexpr int kAcross = kTile / 16;

  SBHAL_INLINE static int own_row() { return static_cast<int>(threadIdx.x) * kTogether / kStep; }
  SBHAL_INLINE static int own_code() { return static_cast<int>(threadIdx.x) * kTogether % kStep; }

  SBHAL_INLINE void load(int step, Pack<int16_t, kTogether>& counts, Pack<Code, kTogether>& codes) const {
    const int64_t k = static_cast<int64_t>(step) * kStep + own_code(), i = row + own_row(), n = column + own_row();
    const auto* from = static_cast<const int16_t*>(p.counts.data) + i * p.layer.counts.stride + k;
    const auto* weights = static_cast<const Code*>(p.weight.data) + n * p.weight.stride[0] + k;
    if (i < p.layer.counts.count) counts = load_codes<kTogether>(from, p.counts_in_packs);
    if (n < p.layer.outputs) codes = load_codes<kTogether>(weights, p.weight_in_packs);
  }

  // Whether this thread saw high halves. Scales come along with a group's first step.
  SBHAL_INLINE int store(const Pack<int16_t, kTogether>& counts, const Pack<Code, kTogether>& codes, int group) const {
    const int at = own_row() * kPitch + own_code(), thread = static_cast<int>(threadIdx.x);
    const bool counts_beyond = split(counts, shared.counts + at, shared.counts_high + at);
    const bool codes_beyond = split(codes, shared.codes + at, shared.codes_high + at);
    const int seen = (ballot(counts_beyond) ? 1 : 0) | (ballot(codes_beyond) ? 2 : 0);
    if (lane() == 0) shared.beyond[wave()] = seen;
    if (group >= 0 && thread < kTile)
      shared.scales[thread] =
          column + thread < p.layer.outputs
              ? static_cast<const float*>(p.scales.data)[(column + thread) * p.scales.stride[0] + group]
              : 0.0f;
    return seen;
  }
  SBHAL_INLINE int seen_by_all(int seen) const {
    for (int w = 0; w < kThreads / SBHAL_WAVE; ++w) seen |= shared.beyond[w];
    return seen;
  }

  template <int count> SBHAL_INLINE void multiply(int beyond, Products (&low)[kTiles], Products (&cross)[kTiles],
                                                  Products (&top)[count]) const {
    constexpr Stored rows = Stored::rows, columns = Stored::columns;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int left = row_of(j) * kPitch, right = column_of(j) * kPitch;
#pragma unroll
      for (int k = 0; k < kStep; k += 16) {
        const bf16 *counts = shared.counts + left + k, *codes = shared.codes + right + k;
        const bf16 *counts_high = shared.counts_high + left + k, *codes_high = shared.codes_high + right + k;
        low[j].template multiply<rows, columns>(counts, kPitch, codes, kPitch);
        if (beyond & 1) cross[j].template multiply<rows, columns>(counts_high, kPitch, codes, kPitch);
        if (sizeof(Code) == 1) continue;
        if (beyond & 2) cross[j].template multiply<rows, columns>(counts, kPitch, codes_high, kPitch);
        if (beyond == 3)
          top[count > 1 ? j : 0].template multiply<rows, columns>(counts_high, kPitch, codes_high, kPitch);
      }
    }
  }

  template <int count> SBHAL_INLINE static Sums join(const Products (&low)[kTiles], const Products (&cross)[kTiles],
                                                     const Products (&top)[count]) {
    Sums sums;
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int part = static_cast<int>(low[j].c[e]) + 256 * static_cast<int>(cross[j].c[e]);
        if (sizeof(Code) == 1)
          sums.tile[j].c[e] = static_cast<float>(part);
        else
          sums.tile[j].c[e] = static_cast<float>(65536 * static_cast<int64_t>(top[count > 1 ? j : 0].c[e]) + part);
      }
    return sums;
  }
};

// What of the block's tile this thread holds: f(row, output, value) within it, both counted from the tile's corner.
template <class Code, class F> SBHAL_INLINE void each_element(Products (&tiles)[kTiles], const F& f) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
    tiles[j].each(
        [&](int r, int n, float& value) { f(Tile<Code>::row_of(j) + r, Tile<Code>::column_of(j) + n, value); });
}

// totals += scale of the output * the sums of its group
template <class Code>
SBHAL_INLINE void add_scaled(const typename Tile<Code>::Sums& sums, const float* scales, Products (&totals)[kTiles]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      totals[j].c[e] += scales[Tile<Code>::column_of(j) + Products::Unit::column(e)] * sums.tile[j].c[e];
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

// The operands of a kernel's block, under the name `operands`.
#define SBHAL_SPIKE_OPERANDS(operands)                                              \
  SBHAL_SHARED(bf16, operands##_counts, 2 * kTile * kPitch);                        \
  SBHAL_SHARED(bf16, operands##_codes, 2 * kTile * kPitch);                         \
  SBHAL_SHARED(float, operands##_scales, kTile);                                    \
  SBHAL_SHARED(int, operands##_beyond, kThreads / SBHAL_WAVE);                      \
  const Operands operands = {operands##_counts, operands##_counts + kTile * kPitch, \
                             operands##_codes,  operands##_codes + kTile * kPitch,  \
                             operands##_scales, operands##_beyond}
