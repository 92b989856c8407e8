// Sums of many terms. Added one after the other into one float, equal terms round the same way again and again: the
// error grows with their number. Here sixteen make one term of the next level, in an order that only that number sets.
#pragma once
#include "scalar.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// V is a float or a vector of them.
template <class V> struct Cascade {
  static constexpr int kLevels = 4;
  V level[kLevels] = {};

  // `count` is how many terms there are now, with this one.
  SBHAL_INLINE void add(V term, int64_t count) {
    level[0] += term;
#pragma GCC unroll 4
    for (int i = 1; i < kLevels; ++i) {
      if (count & ((int64_t{1} << 4 * i) - 1)) break;
      level[i] += level[i - 1];
      level[i - 1] = V{};
    }
  }

  SBHAL_INLINE V total() const { return (level[0] + level[1]) + (level[2] + level[3]); }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
