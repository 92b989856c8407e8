// spike_encode: one threshold a row, then integer counts; every activation is read once.
#include "spike_encode_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

int64_t plan(const Tensor& x, double k, double vth_min, double vth_max, const char* mean_dtype) {
  activation_rows(x);
  threshold_rule(k, vth_min, vth_max, mean_dtype);
  return 0;
}

struct Count {
  using type = int16_t;
  SBHAL_INLINE static int16_t of(float x, float threshold) { return static_cast<int16_t>(to_count(x / threshold)); }
};

void launch(const Tensor& x, double k, double vth_min, double vth_max, const char* mean_dtype, const Tensor& counts,
            const Tensor& v_threshold, const Launch& launch) {
  const Rows rows = activation_rows(x);
  const Threshold rule = threshold_rule(k, vth_min, vth_max, mean_dtype);
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    code<Count, T>("spike_encode", x, rows, rule, counts, static_cast<float*>(v_threshold.data), launch);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_encode, 1, plan, launch)
