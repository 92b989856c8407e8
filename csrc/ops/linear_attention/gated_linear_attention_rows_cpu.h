// Gated linear attention on CPUs, shared by its forward, backward and decode step: how the work is split, and blocks of
// tokens staged as float32 rows.
#pragma once
#include "core/parallel.h"
#include "core/simd.h"
#include "gated_linear_attention.h"
#include "gated_linear_attention_tiles_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kWantedTasks = 8;  // with fewer sequences and heads than this, tasks also split the state's columns
constexpr int64_t kMaxSlots = 64;    // threads that get a slice of the workspace

inline Sequence sequence_of(const Sizes& s, const Tensor& cu_seqlens, int64_t n) {
  if (!defined(cu_seqlens)) return {n, 0, s.tokens};
  return {0, index_at(cu_seqlens, n), index_at(cu_seqlens, n + 1)};
}

// A memset that may be given no memory where there is nothing to set.
inline void zero_bytes(void* p, int64_t bytes) {
  if (bytes > 0) __builtin_memset(p, 0, static_cast<size_t>(bytes));
}

// Zero rows for the tokens past cu_seqlens[-1] of a contiguous x [1, T, ...].
inline void zero_tail(const Sizes& s, const Tensor& cu_seqlens, const Tensor& x, int num_threads) {
  if (!defined(cu_seqlens)) return;
  const int64_t begin = index_at(cu_seqlens, s.sequences);
  int64_t bytes = x.dtype == DType::f32 ? 4 : 2;
  for (int i = 2; i < x.ndim; ++i) bytes *= x.shape[i];
  parallel_for(ceil_div(s.tokens - begin, kBlock), num_threads, [&](int64_t task, int) {
    const int64_t from = begin + task * kBlock, count = min(s.tokens - from, kBlock);
    zero_bytes(static_cast<char*>(x.data) + from * bytes, count * bytes);
  });
}

// ---- how work is split: by sequence, head and, when those are few, by parts of `per_part` tiles of the columns

struct Tiling {
  int64_t columns, vectors, width, per_part, parts;
  int64_t first(int64_t part) const { return part * per_part * width; }
  int64_t count(int64_t part) const { return min(columns - first(part), per_part * width); }
  int64_t part_width() const { return per_part * width; }
};

inline Tiling tile(int64_t columns, int64_t group, int64_t sequences_and_heads) {
  Tiling t;
  t.columns = columns;
  // every head at once holds `vectors` sums; four heads are what 16 registers have room for with two vectors each
  t.vectors = kRegisters == 32 || ceil_div(group, ceil_div(group, kHeadsAtOnce)) <= 4 ? 2 : 1;
  t.width = t.vectors * kLanes;
  const int64_t tiles = max<int64_t>(1, ceil_div(columns, t.width));
  const int64_t wanted = ceil_div(kWantedTasks, max<int64_t>(1, sequences_and_heads));
  t.per_part = ceil_div(tiles, min(wanted, tiles));
  t.parts = ceil_div(tiles, t.per_part);
  return t;
}

// Slices of the workspace: as many threads as can have a task, up to a limit.
inline int64_t slots_of(const Sizes& s, const Tiling& t) { return min(s.sequences * s.heads * t.parts, kMaxSlots); }

// Adds `count` floats to a workspace layout, on a cache line of their own, and returns where they start.
inline int64_t reserve(int64_t* total, int64_t count) {
  const int64_t at = *total;
  *total += round_up(count, 64);
  return at;
}

// Parts of K each hold a share of dv, and of dg where the gate is per head: summed at the end, in the parts' order.
inline int64_t shares(const Sizes& s, const Tiling& columns, int64_t width) {
  return columns.parts > 1 ? columns.parts * s.batch * s.tokens * s.heads * width : 0;
}

// to[i] = the parts' shares of element i, added in order.
inline void sum_shares(const float* shares, int64_t parts, int64_t size, int64_t used, const Tensor& to,
                       int num_threads) {
  constexpr int64_t kChunk = 4096;
  with_float(to.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    parallel_for(ceil_div(used, kChunk), num_threads, [&](int64_t task, int) {
      for (int64_t i = task * kChunk; i < min(used, (task + 1) * kChunk); i += kLanes) {
        vf total = load(shares + i, used - i);
        for (int64_t p = 1; p < parts; ++p) total += load(shares + p * size + i, used - i);
        store(static_cast<T*>(to.data) + i, total, used - i);
      }
    });
  });
}

// A part's shares of x, contiguous [B, T, H, ...] like x.
inline Tensor share_of(const Tensor& x, float* shares, int64_t size, int64_t part) {
  Tensor share = x;
  share.data = shares + part * size;
  share.dtype = DType::f32;
  return share;
}

// ---- blocks of tokens as float32

template <class T> const T* element(const Tensor& x, int64_t batch, int64_t token, int64_t head) {
  return static_cast<const T*>(x.data) + batch * x.stride[0] + token * x.stride[1] + head * x.stride[2];
}

// The columns [first, first + width) of one head, with zeros up to whole vectors.
template <bool kExponential> void stage_rows(const Tensor& x, const Sequence& at, int64_t count, int64_t head,
                                             int64_t first, int64_t width, float* to, int64_t pitch) {
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    for (int64_t t = 0; t < count; ++t) {
      const T* row = element<T>(x, at.batch, at.begin + t, head);
      for (int64_t i = 0; i < width; i += kLanes) {
        const vf value = x.ndim == 3 ? set(to_float(*row)) : load(row + first + i, width - i);
        store(to + t * pitch + i, kExponential ? exp(value) : value);
      }
    }
  });
}

// float32 heads are read in place (a copy of q costs 5 % of the forward), 16-bit heads through `scratch`.
inline HeadRows stage_heads(const Sizes& s, const Tensor& x, const Sequence& at, int64_t count, int64_t kv_head,
                            int64_t width, float* scratch) {
  const int64_t pitch = round_up(width, kLanes), first = kv_head * s.group;
  if (x.dtype == DType::f32)
    return {const_cast<float*>(element<float>(x, at.batch, at.begin, first)), x.stride[1], x.stride[2]};
  for (int64_t h = 0; h < s.group; ++h) {
    const Tensor* source = &x;
    with_float(x.dtype, [&](auto* type) {
      using T = typename ElementOf<decltype(type)>::type;
      for (int64_t t = 0; t < count; ++t)
        for (int64_t i = 0; i < width; i += kLanes)
          store(scratch + (t * s.group + h) * pitch + i,
                load(element<T>(*source, at.batch, at.begin + t, first + h) + i, width - i));
    });
  }
  return {scratch, s.group * pitch, pitch};
}

// Where a tile's results go: straight into a float32 output, else into scratch, whence store_heads converts them.
inline HeadRows output_heads(const Sizes& s, const Tensor& y, const Sequence& at, int64_t kv_head, int64_t first,
                             int64_t pitch, float* scratch) {
  if (y.dtype != DType::f32) return {scratch, s.group * pitch, pitch};
  float* data = const_cast<float*>(element<float>(y, at.batch, at.begin, kv_head * s.group)) + first;
  return {data, y.stride[1], y.stride[2]};
}

inline void store_rows(const Tensor& y, const Sequence& at, int64_t count, int64_t head, int64_t first, int64_t width,
                       const float* from, int64_t pitch) {
  with_float(y.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    for (int64_t t = 0; t < count; ++t) {
      T* row = const_cast<T*>(element<T>(y, at.batch, at.begin + t, head)) + first;
      for (int64_t i = 0; i < width; i += kLanes) store(row + i, load(from + t * pitch + i), width - i);
    }
  });
}

inline void store_heads(const Sizes& s, const Tensor& y, const Sequence& at, int64_t count, int64_t kv_head,
                        int64_t first, int64_t width, const HeadRows& from) {
  if (y.dtype == DType::f32) return;
  for (int64_t h = 0; h < s.group; ++h)
    store_rows(y, at, count, kv_head * s.group + h, first, width, from.row(0, h), from.token);
}

// Token strides of several kilobytes are past what hardware prefetchers follow.
inline void prefetch_heads(const HeadRows& x, int64_t t, int64_t group, int64_t first, int64_t width) {
  for (int64_t h = 0; h < group; ++h)
    for (int64_t i = first; i < first + width; i += 16) prefetch(x.row(t, h) + i);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
