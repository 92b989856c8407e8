// Tensors [T, ...] whose axes after time are independent neurons, and parameters with one value a neuron, as kernels
// for CPUs and GPUs see them.
#pragma once
#include "core/kernel.h"
#include "core/vf.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

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

// Rows of neurons from `first` on, one row a time step. An absent tensor has no rows.
template <class T> struct Steps {
  T* data;
  int64_t stride;
  Steps(const Tensor& t, int64_t first)
      : data(defined(t) && t.data ? static_cast<T*>(t.data) + first : nullptr), stride(defined(t) ? t.stride[0] : 0) {}
  SBHAL_INLINE T* at(int64_t step) const { return data + step * stride; }
};

SBHAL_INLINE float to_float(double x) { return static_cast<float>(x); }
template <> SBHAL_INLINE double from_float<double>(float x) { return x; }

// Calls f with a null pointer of the element type, as with_float() does.
template <class F> SBHAL_INLINE void with_parameter(DType dtype, const F& f) {
  if (dtype == DType::f64)
    f(static_cast<double*>(nullptr));
  else if (dtype == DType::f32)
    f(static_cast<float*>(nullptr));
  else if (dtype == DType::bf16)
    f(static_cast<bf16*>(nullptr));
  else
    f(static_cast<f16*>(nullptr));
}

// A tensor with one value a neuron, perhaps an expanded one: neuron i reads element (i / inner) % channels * step.
struct Parameter {
  const void* data;
  DType dtype;      // none where there is no tensor
  float otherwise;  // every neuron's value then
  int64_t inner, channels, step;

  Parameter(const char* name, const Tensor& t, const Tensor& x, float value)
      : data(t.data), dtype(DType::none), otherwise(value), inner(1), channels(1), step(0) {
    if (!defined(t)) return;
    if (t.dtype != DType::f64) check_float(name, t);
    check_shape(name, t, x.ndim - 1, x.shape + 1);
    dtype = t.dtype;
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

  SBHAL_BOTH bool given() const { return dtype != DType::none; }

  SBHAL_INLINE float at(int64_t neuron) const {
    if (!given()) return otherwise;
    const int64_t element = neuron / inner % channels * step;
    float value;
    with_parameter(dtype, [&](auto* type) {
      value = to_float(static_cast<const typename ElementOf<decltype(type)>::type*>(data)[element]);
    });
    return value;
  }
};

// A neuron's gradient, in the dtype of its parameter; nothing where there is no parameter.
SBHAL_INLINE void put_gradient(const Parameter& parameter, void* grad, int64_t neuron, float value) {
  if (!parameter.given()) return;
  with_parameter(parameter.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    static_cast<T*>(grad)[neuron] = from_float<T>(value);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
