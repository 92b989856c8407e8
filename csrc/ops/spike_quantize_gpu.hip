// spike_quantize: spike_encode and back to activations, each row while it is in registers.
#include "spike_encode_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

int64_t plan(const Tensor& x, double k) {
  activation_rows(x);
  threshold_rule(k);
  return 0;
}

template <class T> struct Quantum {
  using type = T;
  SBHAL_INLINE static T of(float x, float threshold) { return from_float<T>(to_count(x / threshold) * threshold); }
};

void launch(const Tensor& x, double k, const Tensor& y, const Launch& launch) {
  const Rows rows = activation_rows(x);
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    code<Quantum<T>, T>("spike_quantize", x, rows, threshold_rule(k), y, nullptr, launch);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_quantize, 1, plan, launch)
