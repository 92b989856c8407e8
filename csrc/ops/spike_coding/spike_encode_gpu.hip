// spike_encode: one threshold a row, then integer counts; every activation is read once.
#include "spike_encode_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

struct Count {
  using type = int16_t;
  SBHAL_INLINE static int16_t of(float x, float threshold) { return static_cast<int16_t>(to_count(x / threshold)); }
};

void launch(const SpikeEncode& a, const Encoding& encoding, const Launch& launch) {
  with_float(a.x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    code<Count, T>("spike_encode", a.x, encoding.rows, encoding.rule, a.counts, static_cast<float*>(a.v_threshold.data),
                   launch);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_encode, 1, SpikeEncode)
