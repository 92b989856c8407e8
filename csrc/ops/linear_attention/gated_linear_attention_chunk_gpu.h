// Gated linear attention in chunks of one matrix tile of tokens, what the GPU kernels share.
//
// A chunk starts at a multiple of kChunk on the time axis, also with packed sequences: those begin and end inside
// chunks, whose other tokens then have decay 1, no key and no value. All decays are products of factors; none is a
// difference of log sums, so that a gate of -inf resets exactly.
#pragma once
#include "gated_linear_attention.h"
#include "gpu/gpu.h"
#include "gpu/mma.h"
#include "gpu/pack.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kChunk = 16, kHalf = kChunk / 2;

// ---- numbers as matrix units take them

// Sums in float32 enter matrix products as a pair of bfloat16 whose sum has 16 bits; so do float16 inputs, since what
// they are multiplied with has float32's range. A product of two pairs leaves out that of the two lower parts.
template <class T> struct Parts {
  using Element = bf16;
  static constexpr int kInput = 1,
                       kSum = 2;  // how many hold an input, a decayed query, a score; a state, a decayed key
};
template <> struct Parts<f16> {
  using Element = bf16;
  static constexpr int kInput = 2, kSum = 2;
};
template <> struct Parts<float> {
  using Element = float;
  static constexpr int kInput = 1, kSum = 1;
};

template <class E, int count> SBHAL_INLINE void split(float x, E (&parts)[count]) {
#pragma unroll
  for (int p = 0; p < count; ++p) {
    parts[p] = from_float<E>(x);
    x -= to_float(parts[p]);
  }
}

// Part p of x at to[p * plane].
template <int count, class E> SBHAL_INLINE void store_parts(float x, E* to, int plane) {
  E parts[count];
  split(x, parts);
#pragma unroll
  for (int p = 0; p < count; ++p) to[p * plane] = parts[p];
}

// The same for eight neighbours, from 16 bytes on.
template <int count, class E> SBHAL_INLINE void store_parts(const float (&x)[8], E* to, int plane) {
  E parts[count][8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    E one[count];
    split(x[i], one);
#pragma unroll
    for (int p = 0; p < count; ++p) parts[p][i] = one[p];
  }
#pragma unroll
  for (int p = 0; p < count; ++p) write_aligned(to + p * plane, parts[p]);
}

// An operand of matrix products in several parts, a plane apart.
template <class E> struct Operand {
  const E* data;
  int pitch, plane;
};

// c += A B of operands in parts, to the precision that `precision` parts have.
template <int precision, int a_parts, int b_parts, Stored a_stored, Stored b_stored, class E>
SBHAL_INLINE void multiply_parts(MmaTile<E>& c, const Operand<E>& a, const Operand<E>& b SBHAL_SITE) {
#pragma unroll
  for (int i = 0; i < a_parts; ++i)
#pragma unroll
    for (int j = 0; j < b_parts; ++j)
      if (i + j < precision)
        c.template multiply<a_stored, b_stored>(a.data + i * a.plane, a.pitch, b.data + j * b.plane,
                                                b.pitch SBHAL_HERE);
}

// ---- rows in memory

template <class T> SBHAL_INLINE T* row_of(const Tensor& x, int64_t batch, int64_t token, int64_t head) {
  return static_cast<T*>(x.data) + batch * x.stride[0] + token * x.stride[1] + head * x.stride[2];
}

// ---- sequences and their chunks

SBHAL_INLINE Sequence sequence_of(int64_t tokens, const Tensor& cu_seqlens, int64_t n) {
  if (!defined(cu_seqlens)) return {n, 0, tokens};
  const int64_t begin = index_within(cu_seqlens, n, tokens);
  return {0, begin, max(begin, index_within(cu_seqlens, n + 1, tokens))};
}

// Tokens first + begin .. first + end - 1 of a batch row.
struct Chunk {
  int64_t batch, first;
  int begin, end;
  SBHAL_INLINE bool has(int i) const { return i >= begin && i < end; }
};

SBHAL_INLINE int64_t first_chunk(const Sequence& s) { return s.begin / kChunk; }
SBHAL_INLINE int64_t chunks_end(const Sequence& s) {
  return s.end > s.begin ? ceil_div(s.end, kChunk) : first_chunk(s);
}
SBHAL_INLINE Chunk chunk_of(const Sequence& s, int64_t index) {
  const int64_t first = index * kChunk;
  return {s.batch, first, static_cast<int>(max<int64_t>(s.begin - first, 0)),
          static_cast<int>(min<int64_t>(s.end - first, kChunk))};
}

// ---- decays

// x decayed, exactly 0 after a reset whatever x was.
SBHAL_INLINE float decayed(float x, float decay) { return decay == 0 ? 0.0f : decay * x; }

// The gates of one batch row and key/value head. T is q's type; gates have that or float32.
template <class T> struct Gates {
  const char* data;
  int64_t token;
  int channel;
  bool wide;

  SBHAL_INLINE Gates(const Tensor& g, int64_t batch, int64_t head)
      : token(g.stride[1]), channel(g.ndim == 4), wide(g.dtype == DType::f32) {
    data = static_cast<const char*>(g.data) +
           (batch * g.stride[0] + head * g.stride[2]) * static_cast<int64_t>(wide ? sizeof(float) : sizeof(T));
  }
  SBHAL_INLINE int64_t index(int64_t t, int64_t d) const { return t * token + d * channel; }
  SBHAL_INLINE float decay_at(int64_t i) const {
    return expf(wide ? reinterpret_cast<const float*>(data)[i] : to_float(reinterpret_cast<const T*>(data)[i]));
  }
  SBHAL_INLINE float decay(int64_t t, int64_t d) const { return decay_at(index(t, d)); }
};

// Half a chunk's decays of one channel. Threads t and t ^ kApart have the two halves of the same channel, so that each
// reads eight gates and the halves' products cross by one shuffle.
struct HalfDecays {
  static constexpr int kApart = 16;
  float alpha[kHalf];

  SBHAL_INLINE static int half() { return static_cast<int>(threadIdx.x) / kApart % 2; }
  SBHAL_INLINE static int channel() {
    return static_cast<int>(threadIdx.x) / (2 * kApart) * kApart + static_cast<int>(threadIdx.x) % kApart;
  }

  // 1 for tokens outside of the chunk's sequence, and everywhere unless `inside`.
  template <class T> SBHAL_INLINE HalfDecays(const Gates<T>& gates, const Chunk& chunk, int64_t d, bool inside) {
    const int first = half() * kHalf;
    const int64_t index = gates.index(chunk.first + first, d);
#pragma unroll
    for (int i = 0; i < kHalf; ++i)
      alpha[i] = inside && chunk.has(first + i) ? gates.decay_at(index + i * gates.token) : 1;
  }
  SBHAL_INLINE float product() const {
    float all = 1;
#pragma unroll
    for (float a : alpha) all *= a;
    return all;
  }
  // alpha[i] becomes the product of the chunk's decays up to token i, including its own.
  SBHAL_INLINE void prefix() {
    const float other = shuffle_xor(product(), kApart);
    float all = half() ? other : 1;
#pragma unroll
    for (float& a : alpha) a = all *= a;
  }
  // alpha[i] becomes the product of the decays after token i; returns that of the whole chunk.
  SBHAL_INLINE float suffix() {
    const float other = shuffle_xor(product(), kApart);
    float all = half() ? 1 : other;
#pragma unroll
    for (int i = kHalf - 1; i >= 0; --i) {
      const float own = alpha[i];
      alpha[i] = all;
      all *= own;
    }
    return half() ? all * other : all;
  }
};

// ---- tokens past the last sequence

constexpr int kZeroThreads = 256;

// The grid strides over the elements of the tokens that belong to no sequence; every block finds where they begin by
// itself. Nothing is shared: no barrier.
template <class T> __global__ void __launch_bounds__(kZeroThreads)
    zero_tail_kernel(Tensor cu_seqlens, T* x, int64_t tokens, int64_t token_size) {
  const int64_t begin = index_within(cu_seqlens, cu_seqlens.shape[0] - 1, tokens) * token_size;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kZeroThreads;
  for (int64_t i = begin + blockIdx.x * static_cast<int64_t>(kZeroThreads) + threadIdx.x; i < tokens * token_size;
       i += step)
    x[i] = from_float<T>(0);
}

// Zeros for the tokens past cu_seqlens[-1] of a contiguous x [1, T, ...].
inline void zero_tail(const Tensor& cu_seqlens, const Tensor& x, const Launch& launch) {
  if (!defined(cu_seqlens)) return;
  int64_t token_size = 1;
  for (int i = 2; i < x.ndim; ++i) token_size *= x.shape[i];
  const int64_t blocks = min<int64_t>(ceil_div(x.shape[1] * token_size, kZeroThreads), 1024);
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    launch_kernel("zero_tail", zero_tail_kernel<T>, blocks, kZeroThreads, launch, cu_seqlens, static_cast<T*>(x.data),
                  x.shape[1], token_size);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
