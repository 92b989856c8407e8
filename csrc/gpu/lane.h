// One float under the names that core/simd.h gives a vector of them. A comparison of two vf is a bool, the mask that
// select() takes.
#pragma once
#include "gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

using vf = float;

SBHAL_INLINE vf set(float x) { return x; }
SBHAL_INLINE vf zero() { return 0.0f; }
SBHAL_INLINE vf select(bool mask, vf yes, vf no) { return mask ? yes : no; }
SBHAL_INLINE vf vmax(vf a, vf b) { return select(a > b, a, b); }  // b where either is NaN
SBHAL_INLINE vf vmin(vf a, vf b) { return select(a < b, a, b); }
SBHAL_INLINE vf vabs(vf x) { return fabsf(x); }
SBHAL_INLINE vf round_even(vf x) { return rintf(x); }
SBHAL_INLINE vf exp(vf x) { return expf(x); }
SBHAL_INLINE vf exp2(vf x) { return exp2f(x); }

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
