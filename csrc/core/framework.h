// What the module knows of the framework whose tensors it reads: torch, bound from Python, never linked.
#pragma once
#include <pybind11/pybind11.h>

#include "tensor.h"

namespace sbhal {

struct Framework {
  PyObject* unsupported = nullptr;  // exceptions to raise
  PyObject* stride = nullptr;
  PyObject* empty = nullptr;  // empty(bytes) -> uint8 tensor
  bool uses_exchange_table() const;
  pybind11::object allocate(int64_t bytes) const { return pybind11::handle(empty)(bytes); }
};
extern Framework framework;

void bind(const pybind11::type& tensor_type, const pybind11::dict& dtypes, bool use_exchange,
          const pybind11::object& unsupported, const pybind11::object& stride, const pybind11::object& empty);

// A view of a tensor, or of None; raises a Python exception for anything else.
void view(PyObject* object, Tensor* out);

// One argument by its letter in a signature.
void convert(char code, PyObject* object, Value* out);

}  // namespace sbhal
