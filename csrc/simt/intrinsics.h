// Integer atomics, which every vendor's compiler offers. They order nothing, as on a GPU; each returns what was there
// before.
#pragma once

#define SBHAL_SIMT_ATOMIC(type)                                                                             \
  __forceinline__ type atomicAdd(type* p, type v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }    \
  __forceinline__ type atomicOr(type* p, type v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }      \
  __forceinline__ type atomicExch(type* p, type v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }  \
  __forceinline__ type atomicCAS(type* p, type expected, type v) {                                          \
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                \
    return expected;                                                                                        \
  }                                                                                                         \
  __forceinline__ type atomicMax(type* p, type v) {                                                         \
    type old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                        \
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) { \
    }                                                                                                       \
    return old;                                                                                             \
  }                                                                                                         \
  __forceinline__ type atomicMin(type* p, type v) {                                                         \
    type old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                        \
    while (v < old && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) { \
    }                                                                                                       \
    return old;                                                                                             \
  }
SBHAL_SIMT_ATOMIC(int)
SBHAL_SIMT_ATOMIC(unsigned)
SBHAL_SIMT_ATOMIC(unsigned long long)
#undef SBHAL_SIMT_ATOMIC
