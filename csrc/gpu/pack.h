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

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
