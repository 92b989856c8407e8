// Plain data that crosses from the Python module into a kernel. No torch, no Python, no constructors:
// kernels are compiled once per instruction set, and nothing with linkage may be shared between those copies.
#pragma once
#include <cstdint>

namespace sbhal {

enum class DType : int32_t { none, f32, bf16, f16, f64, i8, i16, i32, i64, u8, boolean };

constexpr int kMaxDims = 8;

// A borrowed view. `data` points at element zero; strides are in elements. An absent tensor has ndim -1.
struct Tensor {
  void* data;
  DType dtype;
  int32_t ndim;
  int64_t shape[kMaxDims];
  int64_t stride[kMaxDims];
};

// What a launch gets besides its tensors. The caller owns the workspace; a launch allocates nothing.
struct Launch {
  char* workspace;  // 256-byte aligned, as many bytes as the plan asked for
  int64_t workspace_bytes;
  int64_t stream;  // 0 on a CPU
  int num_threads;
};

// One operator compiled for one instruction set.
struct KernelEntry {
  const char* op;
  int32_t version;
  int32_t isa;
  const char* arguments;  // the text of their struct, see core/arguments.h
  // Reads arguments without outputs, writes what the launch needs to know of them, and returns the bytes of workspace
  // that it wants; throws, and touches no tensor's data.
  int64_t (*plan)(const void* arguments, void* planned);
  void (*launch)(const void* arguments, const void* planned, const Launch&);
};

constexpr int kMaxPlanned = 1024;  // bytes

}  // namespace sbhal
