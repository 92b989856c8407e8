// How Python calls a kernel: the arguments of a call are converted by the kernel's signature, refusals become
// exceptions.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "tensor.h"

namespace sbhal {

constexpr int64_t kAlignment = 256;  // of workspaces

// Every argument but the launch. Raises unless there are `more` objects beyond those, and returns where these start.
Py_ssize_t convert_all(const char* signature, PyObject* const* objects, Py_ssize_t count, int more, Value* values);

// The workspace that a caller brought, from the next aligned byte on.
void view_workspace(PyObject* object, Launch* out);

// This process is a fork of one whose threads may have worked: launches run on one thread from now on.
void note_fork();

// Stream and thread count. After a fork there is one thread.
void convert_launch(PyObject* stream, PyObject* num_threads, Launch* out);

// Runs a launch whose arguments have been converted and planned; the interpreter lock is not held.
using Run = void (*)(const KernelEntry*, Value*);

// `<op>_plan`: takes inputs and attributes, returns the bytes of workspace.
PyObject* call_plan(const KernelEntry* entry, PyObject* const* objects, Py_ssize_t count);

// `<op>`: takes inputs, attributes, outputs, workspace, stream and num_threads; plans, then runs.
PyObject* call_launch(const KernelEntry* entry, PyObject* const* objects, Py_ssize_t count, Run run);

// Raises the Python exception for what is being thrown.
void raise_current(const char* op);

using Call = PyObject* (*)(const KernelEntry*, PyObject* const*, Py_ssize_t);

// pybind11's own dispatch would cost as much again as the rest of a small call.
template <Call call> PyObject* entry_point(PyObject* self, PyObject* const* objects, Py_ssize_t count) {
  const auto* entry = static_cast<const KernelEntry*>(PyCapsule_GetPointer(self, nullptr));
  try {
    return call(entry, objects, count);
  } catch (...) {
    raise_current(entry->op);
  }
  return nullptr;
}

void define(pybind11::module_& m, const std::string& name, const KernelEntry* entry, _PyCFunctionFast function);

}  // namespace sbhal
