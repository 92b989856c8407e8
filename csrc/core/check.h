// How a kernel refuses a call. The module prefixes the operator's name and raises the Python exception.
#pragma once
#include "tensor.h"

namespace sbhal {

enum class Error {
  value,        // ValueError: shapes and ranges
  type,         // TypeError: dtypes
  unsupported,  // UnsupportedOp: a legal call that this kernel does not serve; the only one that may fall back
  stride,       // the bridge copies the tensors whose innermost stride is not 1 and calls again
  device,       // DeviceError: a launch failed on its device
};

[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Error kind, const char* format, ...);

// Raises ValueError unless t has exactly these sizes.
void check_shape(const char* name, const Tensor& t, int ndim, const int64_t* sizes);

// Raises UnsupportedOp unless t is float32, bfloat16 or float16 (float64 is served by the reference).
void check_float(const char* name, const Tensor& t);

void check_dtype(const char* name, const Tensor& t, DType expected);

// Raises TypeError unless t is int32 or int64.
void check_index(const char* name, const Tensor& t);

// Asks the bridge for a copy unless the innermost stride is 1.
void check_innermost(const char* name, const Tensor& t);

// Asks the bridge for a copy unless t is contiguous: what a first kernel wants.
void check_contiguous(const char* name, const Tensor& t);

// Checks offsets: starts at 0, never decreases, ends within `total`. Returns nothing; raises ValueError.
void check_offsets(const char* name, const Tensor& t, int64_t total);

// The place of a string among the accepted ones; raises ValueError with all of them if it is none.
int check_choice(const char* name, const char* given, const char* const* accepted, int count);

// Raises ValueError unless strides nest, so that no two elements can share memory: what is written in place needs that.
void check_own_memory(const char* name, const Tensor& t);

const char* dtype_name(DType dtype);

}  // namespace sbhal
