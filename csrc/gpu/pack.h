// Neighbouring elements that one thread reads or writes at once, up to 16 bytes of them.
#pragma once
#include "gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

template <class T, int count> struct alignas(sizeof(T) * count) Pack {
  T at[count];
};

// p must be aligned to the pack's size.
template <int count, class T> SBHAL_INLINE Pack<T, count> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, count>*>(p);
}
template <class T, int count> SBHAL_INLINE void store_pack(T* p, const Pack<T, count>& pack) {
  *reinterpret_cast<Pack<T, count>*>(p) = pack;
}

// Whether elements of `size` bytes that start at t.data can be read in packs of `count`.
inline bool packs_at(const Tensor& t, int64_t size, int64_t count) {
  return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(size * count) == 0;
}

// ---- rows

// Whether every row of t, of elements of `size` bytes, starts on 16 bytes. For the host: kernels keep tensors out of
// registers if they index strides by a variable.
inline bool rows_aligned(const Tensor& t, int64_t size) {
  bool aligned = packs_at(t, 1, 16);
  for (int i = 0; i + 1 < t.ndim; ++i) aligned = aligned && (t.shape[i] <= 1 || t.stride[i] * size % 16 == 0);
  return aligned;
}

// Copies between memory and registers of what starts on 16 bytes.
template <class T, int count> SBHAL_INLINE void read_aligned(const void* from, T (&x)[count]) {
  __builtin_memcpy(x, __builtin_assume_aligned(from, 16), sizeof(x));
}
template <class T, int count> SBHAL_INLINE void write_aligned(void* to, const T (&x)[count]) {
  __builtin_memcpy(__builtin_assume_aligned(to, 16), x, sizeof(x));
}

// The next `left` elements of a row, `count` at most, and zeros.
template <class T, int count> SBHAL_INLINE void load_part(const T* from, int left, bool aligned, T (&x)[count]) {
  if (aligned && left >= count) {
    read_aligned(from, x);
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) x[i] = i < left ? from[i] : from_float<T>(0);
  }
}

// The way back; elements past the `left` that are there are dropped.
template <class T, int count> SBHAL_INLINE void store_part(T* to, int left, bool aligned, const T (&x)[count]) {
  if (aligned && left >= count) {
    write_aligned(to, x);
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i)
      if (i < left) to[i] = x[i];
  }
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
