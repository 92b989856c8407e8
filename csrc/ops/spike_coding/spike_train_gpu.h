// What the GPU kernels of spike_expand and spike_collapse share: a thread takes eight neighbouring elements through all
// time steps, or one where the tensors do not lie so that eight can be read at once.
#pragma once
#include "gpu/gpu.h"
#include "gpu/pack.h"
#include "spike_train.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 8;

// The thread's first element; elements count on through the rows.
template <int together> SBHAL_INLINE int64_t first_element() {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * together;
}
SBHAL_INLINE int64_t offset_of(const Rows& rows, int64_t element) {
  return rows.count == 1 ? element : element / rows.width * rows.stride + element % rows.width;
}

inline int64_t blocks_for(const Rows& rows, int together) {
  return ceil_div(rows.count * rows.width, int64_t{kThreads} * together);
}
inline bool in_packs(const Rows& rows) {
  return rows.width % kTogether == 0 && (rows.count <= 1 || rows.stride % kTogether == 0);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
