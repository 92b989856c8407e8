// How Python calls a kernel: the arguments of a call are converted by the text of their struct, refusals become
// exceptions.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "arguments.h"

namespace sbhal {

constexpr int64_t kAlignment = 256;  // of workspaces

// A kernel, and what its arguments are.
struct Operator {
  const KernelEntry* entry;
  Fields fields;
  std::vector<std::string> names;  // of the fields

  explicit Operator(const KernelEntry* entry);
  // "x:T k:d counts:R": the names and types of all arguments.
  std::string signature() const;
};

// This process is a fork of one whose threads may have worked: launches run on one thread from now on.
void note_fork();

// A call from Python: owns what its arguments are converted to.
class PythonCall : public Call {
 public:
  // Converts the arguments, all or those without outputs; `more` objects come behind them.
  PythonCall(const Operator& op, PyObject* const* objects, Py_ssize_t count, int fields, int more);
  PythonCall(const PythonCall&) = delete;
  PythonCall& operator=(const PythonCall&) = delete;

  // Raises what the kernel refuses; what it wants is in workspace_bytes then.
  void plan() { workspace_bytes = entry->plan(arguments, planned); }

  // The workspace that a caller brought, from the next aligned byte on.
  void take_workspace(PyObject* object);

  // Stream and thread count. After a fork there is one thread.
  void take_launch(PyObject* stream, PyObject* num_threads);

 private:
  alignas(64) char argument_memory_[kMaxArgumentBytes];
  alignas(64) char plan_memory_[kMaxPlanned];
};

// Runs a call that has been planned; the interpreter lock is not held.
using Run = void (*)(Call&);

// `<op>_plan`: takes inputs and attributes, returns the bytes of workspace.
PyObject* call_plan(const Operator& op, PyObject* const* objects, Py_ssize_t count);

// `<op>`: takes inputs, attributes, outputs, workspace, stream and num_threads; plans, then runs.
PyObject* call_launch(const Operator& op, PyObject* const* objects, Py_ssize_t count, Run run);

// Raises the Python exception for what is being thrown.
void raise_current(const char* op);

using EntryPoint = PyObject* (*)(const Operator&, PyObject* const*, Py_ssize_t);

// pybind11's own dispatch would cost as much again as the rest of a small call.
template <EntryPoint call> PyObject* entry_point(PyObject* self, PyObject* const* objects, Py_ssize_t count) {
  const auto& op = *static_cast<const Operator*>(PyCapsule_GetPointer(self, nullptr));
  try {
    return call(op, objects, count);
  } catch (...) {
    raise_current(op.entry->op);
  }
  return nullptr;
}

void define(pybind11::module_& m, const std::string& name, const Operator* op, _PyCFunctionFast function);

}  // namespace sbhal
