// What the module knows of the framework whose tensors it reads: torch, bound from Python, never linked.
#pragma once
#include <pybind11/pybind11.h>

#include "arguments.h"

namespace sbhal {

struct Framework {
  PyObject* unsupported = nullptr;  // exceptions to raise
  PyObject* stride = nullptr;
  PyObject* device_error = nullptr;
  PyObject* empty = nullptr;  // empty(bytes) -> uint8 tensor
  bool uses_exchange_table() const;
  pybind11::object allocate(int64_t bytes) const { return pybind11::handle(empty)(bytes); }
};
extern Framework framework;

// Adds bind() to a module: tells it which framework's tensors to read and where they must be, which exceptions to
// raise, how to get memory, and whether this process is a fork of one in which threads may have worked.
void define_bind(pybind11::module_& m);

constexpr Tensor kAbsent = {nullptr, DType::none, -1, {}, {}};

// A view of a tensor, or of None, which is absent; anything else is refused by this name.
void view(const char* name, PyObject* object, Tensor* out);

// Writes an argument into its place among the others; what does not fit is refused by this name.
void convert(const char* name, const Field& field, PyObject* object, void* place);

// An integer, where the name says what it is.
int64_t to_integer(const char* name, PyObject* object);

}  // namespace sbhal
