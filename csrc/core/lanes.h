// Scans over the first axis of [T, ...] tensors, whose other axes are independent lanes: blocks of lanes, rows of a
// block, and parameters with one value a lane.
#pragma once
#include "kernel.h"
#include "simd.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kBlock = 8 * kLanes;  // neurons scanned together: eight independent chains hide a step's latency
constexpr int64_t kStreamBytes = int64_t{32} << 20;  // results beyond this would only evict each other from the cache

// How many neurons there are: the axes after time, which must lie as one contiguous run, or the bridge copies.
inline int64_t lanes_of(const char* name, const Tensor& t) {
  int64_t lanes = 1;
  for (int i = 1; i < t.ndim; ++i) lanes *= t.shape[i];
  for (int64_t i = t.ndim - 1, expected = 1; lanes > 0 && i >= 1; --i) {
    if (t.shape[i] != 1 && t.stride[i] != expected)
      fail(Error::stride, "%s is not contiguous within a time step", name);
    expected *= t.shape[i];
  }
  return lanes;
}

// Rows of one block of neurons, one row a time step. An absent tensor has no rows.
template <class T> struct Steps {
  T* data;
  int64_t stride;
  Steps(const Tensor& t, int64_t first)
      : data(defined(t) && t.data ? static_cast<T*>(t.data) + first : nullptr), stride(defined(t) ? t.stride[0] : 0) {}
  SBHAL_INLINE T* at(int64_t step) const { return data + step * stride; }
};

SBHAL_INLINE float to_float(double x) { return static_cast<float>(x); }
template <> SBHAL_INLINE double from_float<double>(float x) { return x; }

template <class F> SBHAL_INLINE void with_parameter(DType dtype, const F& f) {
  if (dtype == DType::f64)
    f(static_cast<double*>(nullptr));
  else
    with_float(dtype, f);
}

// A tensor with one value a neuron, perhaps an expanded one: neuron i reads element (i / inner) % channels * step.
struct Parameter {
  Tensor tensor;
  float otherwise;  // every neuron's value where there is no tensor
  int64_t inner, channels, step;

  Parameter(const char* name, const Tensor& t, const Tensor& x, float value)
      : tensor(t), otherwise(value), inner(1), channels(1), step(0) {
    if (!defined(t)) return;
    if (t.dtype != DType::f64) check_float(name, t);
    check_shape(name, t, x.ndim - 1, x.shape + 1);
    int i = t.ndim - 1;
    for (; i >= 0 && (t.shape[i] == 1 || t.stride[i] == 0); --i) inner *= t.shape[i];
    for (; i >= 0; --i) {
      if (t.shape[i] == 1) continue;
      if (channels > 1 && t.stride[i] != step * channels) break;
      if (channels == 1) step = t.stride[i];
      channels *= t.shape[i];
    }
    for (; i >= 0; --i)
      if (t.shape[i] != 1 && t.stride[i] != 0)
        fail(Error::stride, "%s is neither contiguous nor expanded from one run of channels", name);
  }

  void fill(float* out, int64_t first, int64_t count) const {
    if (!defined(tensor))
      for (int64_t i = 0; i < count; ++i) out[i] = otherwise;
    else
      with_parameter(tensor.dtype, [&](auto* type) {
        const auto* data = static_cast<const typename ElementOf<decltype(type)>::type*>(tensor.data);
        int64_t channel = first / inner % channels, left = inner - first % inner;
        for (int64_t i = 0; i < count; ++i) {
          out[i] = to_float(data[channel * step]);
          if (--left > 0) continue;
          left = inner;
          if (++channel == channels) channel = 0;
        }
      });
  }
};

// Rows are written around the cache where the whole result is larger than it.
template <class T> SBHAL_INLINE void put(T* p, vf v, int64_t n, bool around_cache) {
  if (n < kLanes)
    store(p, v, n);
  else if (around_cache)
    stream(p, v);
  else
    store(p, v);
}

// Tasks of several blocks, so that small problems still fill the threads and large ones pay little for scheduling.
struct Blocks {
  int64_t count, per_task, tasks;
  explicit Blocks(int64_t lanes)
      : count(ceil_div(lanes, kBlock)),
        per_task(max<int64_t>(1, min<int64_t>(16, count / 256))),
        tasks(ceil_div(count, per_task)) {}
  int64_t begin(int64_t task) const { return task * per_task * kBlock; }
  int64_t end(int64_t task, int64_t lanes) const { return min(lanes, begin(task + 1)); }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
