// spike_quantize: spike_encode and back to activations, each row while it is in registers.
#include "spike_encode_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

template <class T> struct Quantum {
  using type = T;
  SBHAL_INLINE static T of(float x, float threshold) { return from_float<T>(to_count(x / threshold) * threshold); }
};

void launch(const SpikeQuantize& a, const Encoding& encoding, const Launch& launch) {
  with_float(a.x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    code<Quantum<T>, T>("spike_quantize", a.x, encoding.rows, encoding.rule, a.y, nullptr, launch);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_quantize, 1, SpikeQuantize)
