// Gated linear attention over one tile of the state, in registers and L1: one token, one key/value head.
//
// A tile is [rows][one or two vectors]. The forward tiles the columns of S (rows are the K channels, the gate goes with
// the row); the backward tiles the columns of S^T (rows are the V channels, the gate goes with the column), so that the
// sums over V that give dq, dk and dg need no horizontal additions.
#pragma once
#include <cstddef>

#include "core/kernel.h"
#include "core/simd.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kBlock = 16;   // tokens staged at once: the outer loop, so that each tile's pass finds them in cache
constexpr int kHeadsAtOnce = 8;  // query heads whose sums one pass keeps in registers

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// The `group` rows of each token that belong to one key/value head.
struct HeadRows {
  float* data;
  int64_t token, head;
  float* row(int64_t t, int64_t x) const { return data + t * token + x * head; }
};

// ---- one token over one state tile:  to = gate * from + row column^T,  y_h = scale * x_h^T to

// A tile [rows][one or two vectors] lies in L1 from token to token of a block. In registers: y [M heads][vectors],
// column and, if gates go with the columns, column_gate [vectors]. Row after row passes through them:
//
//   s = gate * from[i] + row[i] column;  to[i] = s;  y_h += x_h[i] s for each of the M heads
//
// so a row is read and written once for M heads; further heads pass over the tile again and only read it.

struct Pass {
  int64_t rows;
  const float* from;
  float* to;
  int64_t pitch;  // of the state's rows
  const float *row, *column, *gate;
  HeadRows x, y;
  int64_t width;  // columns of y
  float scale;
};

// Where the state is: a tile padded to whole vectors in L1, or columns of a larger state in memory, whose last vector
// may be partial and whose rows are farther apart than hardware prefetchers look.
enum class State { tile, memory, memory_partial };

template <int M, int NV, bool kColumnGate, bool kUpdate, State kState>
void pass_heads(const Pass& p, int64_t t, int64_t head) {
  vf y[M][NV], column[NV], column_gate[NV];
  for (int c = 0; c < NV; ++c) {
    column[c] = load(p.column + c * kLanes);
    column_gate[c] = kColumnGate ? load(p.gate + c * kLanes) : zero();
    for (int h = 0; h < M; ++h) y[h][c] = zero();
  }
  const float* x[M];
  for (int h = 0; h < M; ++h) x[h] = p.x.row(t, head + h);
  const float *from = p.from, *row = p.row, *gate = p.gate;
  float* to = p.to;
  const int64_t rows = p.rows, pitch = p.pitch, last = p.width - (NV - 1) * kLanes;
  constexpr bool kWhole = kState != State::memory_partial;
  const auto read = [&](const float* state, int64_t i, int c) {
    state += i * pitch + c * kLanes;
    return kWhole || c < NV - 1 ? load(state) : load(state, last);
  };
  for (int64_t i = 0; i < rows; ++i) {
    vf s[NV];
    if (kState != State::tile && kUpdate)
      for (int c = 0; c < NV; ++c) prefetch_write(to + (i + 16) * pitch + c * kLanes);
    for (int c = 0; c < NV; ++c) {
      if (kUpdate) {
        const vf decay = kColumnGate ? column_gate[c] : set(gate[i]);
        s[c] = read(from, i, c) * decay + set(row[i]) * column[c];
        if (kWhole || c < NV - 1)
          store(to + i * pitch + c * kLanes, s[c]);
        else
          store(to + i * pitch + c * kLanes, s[c], last);
      } else {
        s[c] = read(to, i, c);
      }
    }
    for (int h = 0; h < M; ++h)
      for (int c = 0; c < NV; ++c) y[h][c] += s[c] * set(x[h][i]);
  }
  for (int h = 0; h < M; ++h)
    for (int c = 0; c < NV; ++c) store(p.y.row(t, head + h) + c * kLanes, y[h][c] * set(p.scale), p.width - c * kLanes);
}

template <int N> struct Constant {
  static constexpr int value = N;
};

// Calls f with Constant<n>, 1 <= n <= kLast.
template <int kLast, int N = 1, class F> SBHAL_INLINE void with_constant(int64_t n, const F& f) {
  if constexpr (N == kLast)
    f(Constant<N>());
  else if (n == N)
    f(Constant<N>());
  else
    with_constant<kLast, N + 1>(n, f);
}

// Calls f(first head, Constant<heads>) for near-equal pieces of the group.
template <class F> SBHAL_INLINE void for_each_piece(int64_t group, const F& f) {
  const int64_t pieces = ceil_div(group, kHeadsAtOnce);
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = i * group / pieces, end = (i + 1) * group / pieces;
    with_constant<kHeadsAtOnce>(end - begin, [&](auto heads) { f(begin, heads); });
  }
}

template <bool kColumnGate, State kState = State::tile>
void pass_group(const Pass& p, int64_t t, int64_t group, int64_t vectors) {
  for_each_piece(group, [&](int64_t head, auto heads) {
    with_constant<2>(vectors, [&](auto nv) {
      if (head == 0)
        pass_heads<decltype(heads)::value, decltype(nv)::value, kColumnGate, true, kState>(p, t, head);
      else
        pass_heads<decltype(heads)::value, decltype(nv)::value, kColumnGate, false, kState>(p, t, head);
    });
  });
}

// Lane i of the result is the sum of rows[i]: each step halves the rows and moves one bit of the row into the lane.
template <int... I> SBHAL_INLINE vf sums(vf (&rows)[kLanes], Indices<I...>) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      rows[i] = __builtin_shufflevector(rows[i], rows[i + half], (I / 2 + I % 2 * kLanes)...) +
                __builtin_shufflevector(rows[i], rows[i + half], (I / 2 + kLanes / 2 + I % 2 * kLanes)...);
  return rows[0];
}

// A whole block over one vector of a state's columns, without the states between:  to = total * from + v^T folded,
// where folded[t] = k[t] * the decays after t, and folded[kBlock] is the total decay.
inline void skip_block(int64_t rows, const float* from, float* to, int64_t pitch, const float* v, int64_t v_pitch,
                       const float* folded, int64_t k_pitch) {
  constexpr int kAtOnce = kRegisters / 2;
  for (int64_t t = 0; t < kBlock; t += kAtOnce, v += kAtOnce * v_pitch) {
    vf k[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) k[i] = load(folded + (t + i) * k_pitch);
    const vf total = t == 0 ? load(folded + kBlock * k_pitch) : set(1.0f);
    const float* source = t == 0 ? from : to;
    for (int64_t j = 0; j < rows; ++j) {
      vf s = load(source + j * pitch) * total;
      for (int i = 0; i < kAtOnce; ++i) s += set(v[i * v_pitch + j]) * k[i];
      store(to + j * pitch, s);
    }
  }
}

// One token over one tile: D += scale * grad_o^T q; with the last heads dk = D^T v, dv += D k, D becomes dL/dS_{t-1}.
struct Reverse {
  int64_t rows, width;
  const float *before, *v, *k, *decay;  // before: S_{t-1}
  float *gradient, *dv, *dk, *dg;
  HeadRows q, grad_o;
  float scale;
};

// In registers q [M heads][vectors], and k, decay, dk, dg [vectors]. kLanes rows of D and of the state before pass by
// at a time; D's products with k are as many vectors, whose sums are one vector of dv.
template <int M, int NV, bool kLast> void reverse_heads(const Reverse& p, int64_t t, int64_t head) {
  vf q[M][NV], k[NV], decay[NV], dk[NV], dg[NV];
  const float* grad_o[M];
  for (int h = 0; h < M; ++h) {
    grad_o[h] = p.grad_o.row(t, head + h);
    for (int c = 0; c < NV; ++c) q[h][c] = load(p.q.row(t, head + h) + c * kLanes, p.width - c * kLanes) * set(p.scale);
  }
  for (int c = 0; c < NV; ++c) {
    k[c] = load(p.k + c * kLanes), decay[c] = load(p.decay + c * kLanes);
    dk[c] = dg[c] = zero();
  }
  const float *v = p.v, *before = p.before;
  float *gradient = p.gradient, *dv = p.dv;
  for (int64_t end, j = 0; j < p.rows; j = end) {
    end = min(p.rows, j + kLanes);
    vf partial[kLanes];
    for (int64_t row = end - j; row < kLanes; ++row) partial[row] = zero();
    for (int64_t row = j; row < end; ++row) {
      vf d[NV];
      for (int c = 0; c < NV; ++c) d[c] = load(gradient + (row * NV + c) * kLanes);
      for (int h = 0; h < M; ++h)
        for (int c = 0; c < NV; ++c) d[c] += set(grad_o[h][row]) * q[h][c];
      if (kLast) {
        partial[row - j] = d[0] * k[0];
        for (int c = 1; c < NV; ++c) partial[row - j] += d[c] * k[c];
        for (int c = 0; c < NV; ++c) {
          dk[c] += d[c] * set(v[row]);
          d[c] *= decay[c];
          dg[c] += d[c] * load(before + (row * NV + c) * kLanes);
        }
      }
      for (int c = 0; c < NV; ++c) store(gradient + (row * NV + c) * kLanes, d[c]);
    }
    if (kLast) store(dv + j, load(dv + j) + sums(partial, typename MakeIndices<kLanes>::type()));
  }
  if (kLast)
    for (int c = 0; c < NV; ++c) store(p.dk + c * kLanes, dk[c]), store(p.dg + c * kLanes, dg[c]);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
