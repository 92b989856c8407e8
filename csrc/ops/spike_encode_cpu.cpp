// spike_encode: one threshold a row, then integer counts. Two passes over a row, the second from cache.
#include "core/kernel.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;

struct Rows {
  int64_t count, width;
};

// x as [rows, K]: the leading axes must lie at one constant stride, or the bridge copies.
Rows rows_of(const Tensor& x) {
  if (x.ndim < 1) fail(Error::value, "x has no axes, expected [..., K]");
  check_innermost("x", x);
  int64_t count = 1, expected = 0;
  for (int i = x.ndim - 2; i >= 0; --i) {
    if (x.shape[i] == 1) continue;
    if (count > 1 && x.stride[i] != expected) fail(Error::stride, "x has leading axes that do not fold into rows");
    count *= x.shape[i];
    expected = x.stride[i] * x.shape[i];
  }
  for (int i = 0; i < x.ndim - 1; ++i)
    if (x.shape[i] == 0) count = 0;
  return {count, x.shape[x.ndim - 1]};
}

int64_t row_stride(const Tensor& x) {
  for (int i = x.ndim - 2; i >= 0; --i)
    if (x.shape[i] != 1) return x.stride[i];
  return x.shape[x.ndim - 1];
}

int64_t plan(const Tensor& x, double k, double vth_min, double vth_max, const char* mean_dtype) {
  check_float("x", x);
  rows_of(x);
  if (!(k > 0)) fail(Error::value, "k is %g, expected a positive number", k);
  if (!(vth_min > 0) || !(vth_max >= vth_min))
    fail(Error::value, "vth_min is %g and vth_max %g, expected 0 < vth_min <= vth_max", vth_min, vth_max);
  if (!equal(mean_dtype, "float32") && !equal(mean_dtype, "input"))
    fail(Error::value, "mean_dtype is '%s', expected 'float32' or 'input'", mean_dtype);
  return 0;
}

template <class T> float mean_magnitude(const T* x, int64_t width) {
  vf partial[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) partial[u] += vabs(load(x + i + u * kLanes));
  for (; i < width; i += kLanes) partial[0] += vabs(load(x + i, width - i));
  return sum((partial[0] + partial[1]) + (partial[2] + partial[3])) / static_cast<float>(width);
}

// Ties to even; saturates at +-32767, NaN gives 0.
SBHAL_INLINE vi to_count(vf ratio) {
  const vf limit = set(32767.0f);
  const vf clipped = select(ratio > limit, limit, select(ratio < -limit, -limit, ratio));
  return to_int(round_even(select(ratio == ratio, clipped, zero())));
}

typedef int16_t vs __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

template <class T> void encode_row(const T* x, int64_t width, float threshold, int16_t* counts) {
  const vf t = set(threshold);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    *reinterpret_cast<vs*>(counts + i) = __builtin_convertvector(to_count(load(x + i) / t), vs);
  if (i < width) {
    const vi last = to_count(load(x + i, width - i) / t);
    for (int64_t j = i; j < width; ++j) counts[j] = static_cast<int16_t>(last[j - i]);
  }
}

void launch(const Tensor& x, double k, double vth_min, double vth_max, const char* mean_dtype, const Tensor& counts,
            const Tensor& v_threshold, const Launch& launch) {
  const Rows rows = rows_of(x);
  const int64_t stride = row_stride(x);
  const float low = static_cast<float>(vth_min), high = static_cast<float>(vth_max), scale = static_cast<float>(k);
  const bool round_mean = equal(mean_dtype, "input");
  with_float(x.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    parallel_for(ceil_div(rows.count, kRowsPerTask), launch.num_threads, [&](int64_t task, int) {
      const int64_t end = min(rows.count, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) {
        const T* data = static_cast<const T*>(x.data) + row * stride;
        float mean = rows.width ? mean_magnitude(data, rows.width) : 0.0f;
        if (round_mean) mean = to_float(from_float<T>(mean));
        float threshold = mean / scale;
        threshold = threshold < low ? low : threshold > high ? high : threshold;
        static_cast<float*>(v_threshold.data)[row] = threshold;
        encode_row(data, rows.width, threshold, static_cast<int16_t*>(counts.data) + row * rows.width);
      }
    });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_CPU_KERNEL(spike_encode, 1, plan, launch)
