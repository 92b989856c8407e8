// What the module knows of the framework whose tensors it reads: torch, bound from Python, never linked.
#pragma once
#include <pybind11/pybind11.h>

#include "tensor.h"

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

// A view of a tensor, or of None; raises a Python exception for anything else.
void view(PyObject* object, Tensor* out);

// One argument by its letter in a signature.
void convert(char code, PyObject* object, Value* out);

}  // namespace sbhal
