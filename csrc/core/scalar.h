// What CPU and GPU kernels share of plain C++: element types, integer arithmetic, the choice of a type by dtype.
#pragma once
#include <cstdint>

#ifdef SBHAL_GPU
#include "vendor.h"  // of the backend being built; defines the execution-space words
#define SBHAL_INLINE __device__ __forceinline__
#define SBHAL_BOTH __host__ __device__ __forceinline__
#else
#define SBHAL_INLINE inline __attribute__((always_inline))
#define SBHAL_BOTH SBHAL_INLINE
#endif

#include "tensor.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

constexpr float kInfinity = __builtin_huge_valf();

template <class T> SBHAL_BOTH constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T> SBHAL_BOTH constexpr T max(T a, T b) { return a < b ? b : a; }
SBHAL_BOTH int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SBHAL_BOTH int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <class T> struct ElementOf;
template <class T> struct ElementOf<T*> {
  using type = T;
};

// Calls f with a null pointer of the element type:
// with_float(q.dtype, [&](auto* type) { using T = typename ElementOf<decltype(type)>::type; ... }).
template <class F> void with_float(DType dtype, const F& f) {
  if (dtype == DType::f32)
    f(static_cast<float*>(nullptr));
  else if (dtype == DType::bf16)
    f(static_cast<bf16*>(nullptr));
  else
    f(static_cast<f16*>(nullptr));
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
