#include "check.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

#include "error.h"

namespace sbhal {

void fail(Error kind, const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw KernelError(kind, text);
}

const char* dtype_name(DType dtype) {
  static const char* const names[] = {"none",  "float32", "bfloat16", "float16", "float64", "int8",
                                      "int16", "int32",   "int64",    "uint8",   "bool"};
  return names[static_cast<int>(dtype)];
}

static std::string sizes_text(int ndim, const int64_t* sizes) {
  std::string text = "[";
  for (int i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

void check_shape(const char* name, const Tensor& t, int ndim, const int64_t* sizes) {
  bool same = t.ndim == ndim;
  for (int i = 0; same && i < ndim; ++i) same = t.shape[i] == sizes[i];
  if (same) return;
  if (t.ndim < 0) fail(Error::type, "%s is None, expected a tensor", name);
  fail(Error::value, "%s has shape %s, expected %s", name, sizes_text(t.ndim, t.shape).c_str(),
       sizes_text(ndim, sizes).c_str());
}

void check_float(const char* name, const Tensor& t) {
  if (t.dtype == DType::f32 || t.dtype == DType::bf16 || t.dtype == DType::f16) return;
  fail(t.dtype == DType::f64 ? Error::unsupported : Error::type, "%s is %s, expected float32, bfloat16 or float16",
       name, dtype_name(t.dtype));
}

void check_dtype(const char* name, const Tensor& t, DType expected) {
  if (t.dtype == expected) return;
  fail(Error::type, "%s is %s, expected %s", name, dtype_name(t.dtype), dtype_name(expected));
}

void check_index(const char* name, const Tensor& t) {
  if (t.dtype == DType::i32 || t.dtype == DType::i64) return;
  fail(Error::type, "%s is %s, expected int32 or int64", name, dtype_name(t.dtype));
}

void check_innermost(const char* name, const Tensor& t) {
  if (t.ndim > 0 && t.shape[t.ndim - 1] > 1 && t.stride[t.ndim - 1] != 1)
    fail(Error::stride, "%s has innermost stride %lld, expected 1", name, static_cast<long long>(t.stride[t.ndim - 1]));
}

void check_contiguous(const char* name, const Tensor& t) {
  bool in_order = true;
  int64_t expected = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    in_order = in_order && (t.shape[i] == 1 || t.stride[i] == expected);
    expected *= t.shape[i];
  }
  if (!in_order && expected > 0) fail(Error::stride, "%s is not contiguous", name);  // an empty one always is
}

int check_choice(const char* name, const char* given, const char* const* accepted, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(given, accepted[i]) == 0) return i;
    all += (i ? ", '" : "'") + std::string(accepted[i]) + "'";
  }
  fail(Error::value, "%s is '%.64s', expected one of %s", name, given, all.c_str());
}

void check_own_memory(const char* name, const Tensor& t) {
  int order[kMaxDims], axes = 0;  // from the smallest stride to the largest
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] == 0) return;
    if (t.shape[i] == 1) continue;
    int at = axes++;
    for (; at > 0 && t.stride[order[at - 1]] > t.stride[i]; --at) order[at] = order[at - 1];
    order[at] = i;
  }
  int64_t reach = 0;  // from the first element to the last over the axes so far
  for (int i = 0; i < axes; ++i) {
    const int axis = order[i];
    if (t.stride[axis] <= reach)
      fail(Error::value,
           "%s is written in place and has strides %s for the shape %s, expected memory of its own for "
           "every element: each stride beyond what the axes of smaller strides reach",
           name, sizes_text(t.ndim, t.stride).c_str(), sizes_text(t.ndim, t.shape).c_str());
    reach += (t.shape[axis] - 1) * t.stride[axis];
  }
}

void check_offsets(const char* name, const Tensor& t, int64_t total) {
  if (t.ndim != 1 || t.shape[0] < 1) fail(Error::value, "%s must be one-dimensional with at least one entry", name);
  int64_t previous = 0;
  for (int64_t i = 0; i < t.shape[0]; ++i) {
    const int64_t at = i * t.stride[0];
    const int64_t offset =
        t.dtype == DType::i32 ? static_cast<int32_t*>(t.data)[at] : static_cast<int64_t*>(t.data)[at];
    if (i == 0 && offset != 0) fail(Error::value, "%s[0] is %lld, expected 0", name, static_cast<long long>(offset));
    if (offset < previous)
      fail(Error::value, "%s[%lld] is %lld, less than the entry before it (%lld)", name, static_cast<long long>(i),
           static_cast<long long>(offset), static_cast<long long>(previous));
    previous = offset;
  }
  if (previous > total)
    fail(Error::value, "%s ends at %lld, past the %lld time steps given", name, static_cast<long long>(previous),
         static_cast<long long>(total));
}

}  // namespace sbhal
