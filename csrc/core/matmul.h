// Register-tiled float32 products for the CPU kernels: C in tiles of kTileRows rows by one panel of columns.
#pragma once
#include "kernel.h"
#include "simd.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kTileRows = kLanes == 16 ? 12 : 6;  // two accumulators a row: 24 of 32 registers, or 12 of 16
constexpr int kPanel = 2 * kLanes;

enum class Update { overwrite, add, scale };  // C = A B, C += A B, C = factor[row] * C + A B

struct Operand {
  const float* data;
  int64_t pitch;  // from one row to the next
};

template <int kRows, bool kTransposed, Update kUpdate>
SBHAL_INLINE void multiply_rows(int64_t depth, Operand a, Operand b, float* c, int64_t pitch, const float* factor) {
  vf low[kRows], high[kRows];
  for (int m = 0; m < kRows; ++m) {
    low[m] = kUpdate == Update::overwrite ? zero() : load(c + m * pitch);
    high[m] = kUpdate == Update::overwrite ? zero() : load(c + m * pitch + kLanes);
    if (kUpdate == Update::scale) low[m] *= set(factor[m]), high[m] *= set(factor[m]);
  }
  for (int64_t p = 0; p < depth; ++p) {
    const vf left = load(b.data), right = load(b.data + kLanes);
    for (int m = 0; m < kRows; ++m) {
      const vf x = set(kTransposed ? a.data[m] : a.data[m * a.pitch]);
      low[m] += x * left;
      high[m] += x * right;
    }
    a.data += kTransposed ? a.pitch : 1;
    b.data += b.pitch;
  }
  for (int m = 0; m < kRows; ++m) store(c + m * pitch, low[m]), store(c + m * pitch + kLanes, high[m]);
}

// One tile: rows <= kTileRows of C, one panel of B. A is [rows, depth], or [depth, rows] where kTransposed.
// Out of line, so that the compiler gives the inner loops all registers.
template <bool kTransposed, Update kUpdate>
__attribute__((noinline)) void multiply(int64_t rows, int64_t depth, Operand a, Operand b, float* c, int64_t pitch,
                                        const float* factor = nullptr) {
  if (rows == kTileRows) return multiply_rows<kTileRows, kTransposed, kUpdate>(depth, a, b, c, pitch, factor);
  const auto advance = [&](int64_t done) {
    a.data += kTransposed ? done : done * a.pitch;
    c += done * pitch;
    rows -= done;
    if (kUpdate == Update::scale) factor += done;
  };
  if (rows >= kTileRows / 2) {
    multiply_rows<kTileRows / 2, kTransposed, kUpdate>(depth, a, b, c, pitch, factor);
    advance(kTileRows / 2);
  }
  while (rows >= 2) {
    multiply_rows<2, kTransposed, kUpdate>(depth, a, b, c, pitch, factor);
    advance(2);
  }
  if (rows > 0) multiply_rows<1, kTransposed, kUpdate>(depth, a, b, c, pitch, factor);
}

// The same for B with values that are not finite, which must not reach a row that gives them no weight: a zero in A
// leaves B's row unread. Adds where `factor` is null.
template <bool kTransposed> void multiply_nonzero(int64_t rows, int64_t depth, Operand a, Operand b, float* c,
                                                  int64_t pitch, const float* factor = nullptr) {
  for (int64_t m = 0; m < rows; ++m, c += pitch) {
    const vf keep = set(factor ? factor[m] : 1.0f);
    vf left = load(c) * keep, right = load(c + kLanes) * keep;
    for (int64_t p = 0; p < depth; ++p) {
      const float x = kTransposed ? a.data[p * a.pitch + m] : a.data[m * a.pitch + p];
      if (x == 0) continue;
      left += set(x) * load(b.data + p * b.pitch);
      right += set(x) * load(b.data + p * b.pitch + kLanes);
    }
    store(c, left), store(c + kLanes, right);
  }
}

template <int... I> SBHAL_INLINE vf interleave_low(vf a, vf b, Indices<I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + I % 2 * kLanes)...);
}
template <int... I> SBHAL_INLINE vf interleave_high(vf a, vf b, Indices<I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + kLanes / 2 + I % 2 * kLanes)...);
}

// A square of kLanes rows, in registers: every step rotates the bits of (row, lane) by one.
SBHAL_INLINE void transpose(vf (&x)[kLanes]) {
  const typename MakeIndices<kLanes>::type lanes;
  for (int step = 1; step < kLanes; step *= 2) {
    vf y[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      y[2 * i] = interleave_low(x[i], x[i + kLanes / 2], lanes);
      y[2 * i + 1] = interleave_high(x[i], x[i + kLanes / 2], lanes);
    }
    for (int i = 0; i < kLanes; ++i) x[i] = y[i];
  }
}

// The largest lane, in every lane.
template <int... I> SBHAL_INLINE vf spread_largest(vf v, Indices<I...>) {
  if (kLanes > 8) v = vmax(v, __builtin_shufflevector(v, v, (I ^ 8 % kLanes)...));
  if (kLanes > 4) v = vmax(v, __builtin_shufflevector(v, v, (I ^ 4 % kLanes)...));
  v = vmax(v, __builtin_shufflevector(v, v, (I ^ 2)...));
  return vmax(v, __builtin_shufflevector(v, v, (I ^ 1)...));
}
SBHAL_INLINE vf spread_largest(vf v) { return spread_largest(v, typename MakeIndices<kLanes>::type()); }

// ---- packing

// Rows of a packed matrix lie a vector further apart than they are long, so that a column of panels does not fall
// onto few sets of the cache.
inline int64_t pitch_of(int64_t columns) { return round_up(columns, kPanel) + kLanes; }

// A row of `count` values times `factor`, as `columns` floats and padding, zeros past the values. False if a value is
// not finite.
template <class T> bool pack_row(const T* x, int64_t count, int64_t columns, float factor, float* out) {
  vi special = {};
  for (int64_t n = 0; n < round_up(columns, kPanel); n += kLanes) {
    const vf value = n < count ? load(x + n, count - n) * set(factor) : zero();
    special |= ~(vabs(value) < set(kInfinity));
    store(out + n, value);
  }
  return sum(to_float(special)) == 0;
}

// Rows lie far apart (the heads are interleaved), where the processor's own prefetching stops: decoding is bound by
// these reads, and twice as fast with the next rows asked for early.
constexpr int64_t kAhead = 16;

template <class T>
bool pack_rows(const T* x, int64_t stride, int64_t count, int64_t padded_count, int64_t columns, float* out) {
  bool finite = true;
  const int64_t pitch = pitch_of(columns);
  for (int64_t j = 0; j < padded_count; ++j) {
    const T* ahead = x + min(j + kAhead, count - 1) * stride;
    for (int64_t n = 0; n < columns; n += 64 / static_cast<int64_t>(sizeof(T))) prefetch_l2(ahead + n);
    finite &= pack_row(j < count ? x + j * stride : x, j < count ? columns : 0, columns, 1.0f, out + j * pitch);
  }
  return finite;
}

// x [count, columns] transposed into panels [padded_count / kPanel][columns][kPanel], missing rows as zeros.
template <class T>
void pack_transposed(const T* x, int64_t stride, int64_t count, int64_t padded_count, int64_t columns, float* out) {
  for (int64_t j = 0; j < padded_count; j += kLanes) {
    float* panel = out + j / kPanel * kPanel * columns + j % kPanel;
    for (int64_t n = 0; n < columns; n += kLanes) {
      for (int i = 0; i < kLanes; ++i) prefetch_l2(x + min(j + i + kLanes, count - 1) * stride + n);
      vf square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = j + i < count ? load(x + (j + i) * stride + n, columns - n) : zero();
      transpose(square);
      const int64_t valid = min<int64_t>(kLanes, columns - n);
      for (int i = 0; i < valid; ++i) store(panel + (n + i) * kPanel, square[i]);
    }
  }
}

template <class T> void write_row(const float* x, float factor, int64_t columns, T* out) {
  for (int64_t n = 0; n < columns; n += kLanes) store(out + n, load(x + n) * set(factor), columns - n);
}

inline void clear(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(x + i, zero());
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
