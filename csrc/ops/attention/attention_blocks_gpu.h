// Attention on a GPU, what its kernels share: which rows or keys a block of threads has, how they reach its shared
// memory and leave it.
//
// Lengths lie on the device. The host counts blocks for the worst case, every sequence ending inside one of its own,
// and on the device a block finds its sequence by its number. Queries or keys that belong to no sequence are a last
// one's that has only the one or the other, so the same code gives them their zeros.
#pragma once
#include "attention.h"
#include "gpu/mma.h"
#include "gpu/pack.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 16;  // rows and columns of a matrix tile
constexpr int kSpan = 32;  // keys or rows that a block takes at once of those that it walks along
constexpr int kPad = 8;    // elements between rows of shared memory, against bank conflicts

// ---- arguments

// A [batch, time, heads, columns] tensor; null where it is absent.
struct View {
  void* data;
  int64_t stride[3];
  int columns;
  bool aligned;  // every row starts on 16 bytes
};

inline View view_of(const Tensor& t) {
  if (!defined(t)) return {};
  const int64_t size = t.dtype == DType::f32 ? 4 : 2;
  return {t.data, {t.stride[0], t.stride[1], t.stride[2]}, static_cast<int>(t.shape[3]), rows_aligned(t, size)};
}

template <class T> SBHAL_INLINE T* row_at(const View& x, const Place& at) {
  if (!x.data) return nullptr;
  return static_cast<T*>(x.data) + at.b * x.stride[0] + at.i * x.stride[1] + at.h * x.stride[2];
}

struct Problem {
  View q, k, v;
  Tensor cu_q, cu_k, kv_lengths;
  Shape shape;
  bool causal;
  int64_t window, sinks;
  float scale;  // of scores as exponents of 2
};

inline Problem problem_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
                          const Tensor& kv_lengths, const Shape& s, bool causal, int64_t window, double scale,
                          int64_t sinks) {
  return {view_of(q),
          view_of(k),
          view_of(v),
          cu_q,
          cu_k,
          kv_lengths,
          s,
          causal,
          window,
          sinks,
          static_cast<float>(scale * kLog2e)};
}

// Index holds sums of rows, keys and a window, which is no longer than both.
inline void check_sizes(const Shape& s) {
  const int64_t most = int64_t{1} << 29;
  if (max(s.queries * s.group, s.batch) >= most || s.keys >= most || max(s.depth, s.width) >= most)
    fail(Error::unsupported, "q has %lld rows a head of k, and k has %lld keys; fewer than 2^29 are supported",
         static_cast<long long>(s.queries * s.group), static_cast<long long>(s.keys));
}

// ---- blocks

enum class Axis { rows, keys };

// Part of a sequence: rows, or keys counted from the sequence's first.
struct Block {
  Mask mask;
  Index begin, end;
};

template <Axis axis> SBHAL_BOTH int64_t units(const Shape& s) {
  return axis == Axis::rows ? s.queries * s.group : s.keys;
}

template <Axis axis> inline int64_t most_blocks(const Shape& s, int64_t size) {
  return s.ragged ? units<axis>(s) / size + s.sequences + 1 : s.batch * ceil_div(units<axis>(s), size);
}

template <Axis axis> SBHAL_INLINE Sequence sequence_at(const Problem& p, Index n) {
  const Shape& s = p.shape;
  const Index queries = static_cast<Index>(s.queries), keys = static_cast<Index>(s.keys);
  if (!s.ragged) return {n, 0, queries, 0, defined(p.kv_lengths) ? index_within(p.kv_lengths, n, keys) : keys};
  const Index query = index_within(p.cu_q, n, queries), key = index_within(p.cu_k, n, keys);
  if (n == s.sequences && axis == Axis::rows) return {0, query, queries - query, key, 0};
  if (n == s.sequences) return {0, query, 0, key, keys - key};
  return {0, query, max(0, index_within(p.cu_q, n + 1, queries) - query), key,
          max(0, index_within(p.cu_k, n + 1, keys) - key)};
}

// Block `number` of `size` rows or keys; an empty one where there are fewer. The blocks of packed sequence n begin with
// number offset / size + n, which leaves each of them enough.
template <Axis axis> SBHAL_INLINE Block block_at(const Problem& p, Index number, int size) {
  const Shape& s = p.shape;
  const Tensor& offsets = axis == Axis::rows ? p.cu_q : p.cu_k;
  const Index each = axis == Axis::rows ? static_cast<Index>(s.group) : 1;
  const Index most = static_cast<Index>(units<axis>(s)) / each;
  const auto first_block = [&](Index n) { return index_within(offsets, n, most) * each / size + n; };
  Index n = 0, first = 0;
  if (s.ragged) {
    for (Index last = static_cast<Index>(s.sequences); n < last;) {
      const Index middle = (n + last + 1) / 2;
      if (first_block(middle) <= number)
        n = middle;
      else
        last = middle - 1;
    }
    first = max(0, number - first_block(n)) * size;  // below 0 if offsets do not start there
  } else {
    const Index blocks = static_cast<Index>(ceil_div(units<axis>(s), size));
    n = number / blocks;
    first = number % blocks * size;
  }
  const Sequence sequence = sequence_at<axis>(p, n);
  Index count = axis == Axis::rows ? sequence.queries * each : sequence.keys;
  if (axis == Axis::keys && !s.ragged) count = static_cast<Index>(s.keys);  // zeros for those past a length
  return {Mask(s, sequence, p.causal, p.window, p.sinks), min(first, count), min(first + size, count)};
}

// The spans of keys in which something is visible: those of the sinks, then those of the range.
struct KeySpans {
  Index first, sinks, begin, end;

  SBHAL_INLINE KeySpans(const Visible& seen, Index first_key) : first(first_key) {
    sinks = (seen.sinks.end - first + kSpan - 1) / kSpan;
    begin = max(sinks, (seen.keys.begin - first) / kSpan);
    end = max(begin, (seen.keys.end - first + kSpan - 1) / kSpan);
  }
  SBHAL_INLINE Index count() const { return sinks + end - begin; }
  SBHAL_INLINE Index at(Index i) const { return first + (i < sinks ? i : begin + i - sinks) * kSpan; }
};

// ---- shared memory

template <class T> constexpr int kWidestSlice = 256 / sizeof(T);  // columns that shared memory holds at once

template <class T, int count> SBHAL_INLINE bool is_special(const Pack<T, count>& pack) {
  bool special = false;
#pragma unroll
  for (int i = 0; i < count; ++i) special |= !(fabsf(to_float(pack.at[i])) < kInfinity);
  return special;
}

// What is staged lies as [count][slice + kPad] of T. Neighbouring threads take neighbouring packs of 16 bytes of a row,
// kAcross of them, and the block kDown rows at once. Barriers are the caller's: one before, for who still reads the
// place, and one after, before anyone reads what others have put there.
//
// Copies columns [column, column + slice) of `count` rows to shared memory, zeros where there is none; row_of(i) is row
// i or null. Returns whether this thread, asked to look, saw a value that is not finite. It reads at_once packs before
// it writes them: as many as hide the latency for what passes by, few for what is rarely copied and should not keep
// its addresses in registers meanwhile.
template <int slice, int count, int at_once, class T, class RowOf>
SBHAL_INLINE bool stage(T* to, const View& x, int column, const RowOf& row_of, bool look = false) {
  constexpr int kPack = 16 / sizeof(T), kAcross = slice / kPack, kDown = kThreads / kAcross;
  constexpr int kTogether = count / kDown < at_once ? count / kDown : at_once;
  const int across = static_cast<int>(threadIdx.x) % kAcross;
  column += across * kPack;
  bool special = false;
#pragma unroll 1
  for (int down = static_cast<int>(threadIdx.x) / kAcross; down < count; down += kTogether * kDown) {
    Pack<T, kPack> packs[kTogether] = {};
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const T* row = row_of(down + i * kDown);
      if (row) load_part(row + column, x.columns - column, x.aligned, packs[i].at);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      store_pack(to + (down + i * kDown) * (slice + kPad) + across * kPack, packs[i]);
      if (look) special |= is_special(packs[i]);
    }
  }
  return special;
}

// The way back: columns of rows in shared memory to a result.
template <int slice, int count, class T, class RowOf>
SBHAL_INLINE void unstage(const T* from, const View& x, int column, const RowOf& row_of) {
  constexpr int kPack = 16 / sizeof(T), kAcross = slice / kPack;
  const int across = static_cast<int>(threadIdx.x) % kAcross;
  column += across * kPack;
  for (int i = static_cast<int>(threadIdx.x) / kAcross; i < count; i += kThreads / kAcross) {
    const Pack<T, kPack> pack = load_pack<kPack>(from + i * (slice + kPad) + across * kPack);
    T* row = row_of(i);
    if (row) store_part(row + column, x.columns - column, x.aligned, pack.at);
  }
}

// Whether any thread of the block saw something, told before a barrier and asked after it. `flags` has an entry for
// every wavefront.
SBHAL_INLINE void tell(int* flags, bool seen) {
  const bool any = ballot(seen) != 0;
  if (lane() == 0) flags[wave()] = any;
}
SBHAL_INLINE bool told(const int* flags) {
  int any = 0;
#pragma unroll
  for (int i = 0; i < kThreads / SBHAL_WAVE; ++i) any |= flags[i];
  return any != 0;
}

// ---- products

// Tiles c, side by side, += a b over kSpan columns of weights and rows of b, of whose columns `left` are there. What is
// not finite in b must not reach a row that gives it no weight, as 0 * NaN: then zeros in a leave b's row unread.
template <int count, class T> SBHAL_INLINE void add_weighted(MmaTile<T>* c, const T* a, int a_pitch, const T* b,
                                                             int b_pitch, int64_t left, bool finite) {
  if (finite) {
#pragma unroll
    for (int k = 0; k < kSpan; k += kTile)
#pragma unroll
      for (int n = 0; n < count; ++n)
        if (n * kTile < left) c[n].multiply(a + k, a_pitch, b + k * b_pitch + n * kTile, b_pitch);
    return;
  }
#pragma unroll 1
  for (int k = 0; k < kSpan; ++k)
#pragma unroll
    for (int n = 0; n < count; ++n)
      c[n].each([&](int row, int column, float& sum) {
        const float weight = to_float(a[row * a_pitch + k]);
        if (weight != 0) sum += weight * to_float(b[k * b_pitch + n * kTile + column]);
      });
}

// Tiles c, side by side, += a b^T over the columns of a slice of which `left` are there.
template <int slice, class T, int count>
SBHAL_INLINE void add_scores(MmaTile<T> (&c)[count], const T* a, const T* b, int left) {
  constexpr int kPitch = slice + kPad;
  const int depth = min(slice, left);
#pragma unroll 1
  for (int k = 0; k < depth; k += kTile)
#pragma unroll
    for (int n = 0; n < count; ++n)
      c[n].template multiply<Stored::rows, Stored::columns>(a + k, kPitch, b + n * kTile * kPitch + k, kPitch);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
