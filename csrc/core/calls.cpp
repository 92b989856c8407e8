#include "calls.h"

#include <pthread.h>

#include <climits>
#include <cstring>
#include <new>

#include "error.h"
#include "framework.h"

namespace py = pybind11;

namespace sbhal {
namespace {

// libgomp's workers do not survive a fork: two threads would hang, one is right. Forks before this module was loaded
// are what bind() tells.
bool forked = false;
const int watch_forks = pthread_atfork(nullptr, nullptr, note_fork);

PyObject* type_of(Error kind) {
  switch (kind) {
    case Error::type: return PyExc_TypeError;
    case Error::unsupported: return framework.unsupported;
    case Error::stride: return framework.stride;
    case Error::device: return framework.device_error;
    default: return PyExc_ValueError;
  }
}

// Texts may end within a character: they are cut to a length.
void raise(PyObject* type, const std::string& text) {
  PyObject* message = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
  if (message) PyErr_SetObject(type, message);
  Py_XDECREF(message);
}

// Python's own words for an argument that it cannot convert do not say whose it is.
void name_operator(const char* op) {
  PyObject* const kind = PyErr_ExceptionMatches(PyExc_TypeError) ? PyExc_TypeError : PyExc_ValueError;
  if (!PyErr_ExceptionMatches(kind) && !PyErr_ExceptionMatches(PyExc_OverflowError)) return;
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_Format(kind, "%s: %S", op, value);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(traceback);
}

}  // namespace

void note_fork() { forked = true; }

Operator::Operator(const KernelEntry* kernel) : entry(kernel), fields(fields_of(kernel->arguments)) {
  for (int i = 0; i < fields.count; ++i)
    names.push_back(fields.at[i].length ? std::string(fields.at[i].name, fields.at[i].length)
                                        : "argument " + std::to_string(i + 1));
}

std::string Operator::signature() const {
  std::string all;
  for (int i = 0; i < fields.count; ++i) {
    all += i ? " " : "";
    if (fields.at[i].length) all += names[i] + ":";
    all += fields.at[i].type->code;
  }
  return all;
}

PythonCall::PythonCall(const Operator& op, PyObject* const* objects, Py_ssize_t count, int converted, int more)
    : Call{op.entry, &op.fields, argument_memory_, plan_memory_, 0, {}} {
  if (count != converted + more)
    fail(Error::type, "takes %d arguments, got %lld", converted + more, static_cast<long long>(count));
  for (int i = 0; i < converted; ++i) convert(op.names[i].c_str(), fields->at[i], objects[i], at<void>(i));
  for (int i = converted; i < fields->count; ++i) *tensor(i) = kAbsent;
}

void PythonCall::take_workspace(PyObject* object) {
  Tensor given;
  view("workspace", object, &given);
  launch.workspace = nullptr;
  launch.workspace_bytes = 0;
  if (given.ndim < 0) return;
  if (given.dtype != DType::u8 || given.ndim != 1 || given.stride[0] != 1)
    fail(Error::type, "workspace is no contiguous uint8 tensor of one axis");
  const auto address = reinterpret_cast<uintptr_t>(given.data);
  const auto aligned = (address + kAlignment - 1) & ~static_cast<uintptr_t>(kAlignment - 1);
  launch.workspace = reinterpret_cast<char*>(aligned);
  launch.workspace_bytes = given.shape[0] - static_cast<int64_t>(aligned - address);
}

void PythonCall::take_launch(PyObject* stream, PyObject* num_threads) {
  launch.stream = to_integer("stream", stream);
  const int64_t threads = to_integer("num_threads", num_threads);
  if (threads < 1 || threads > INT_MAX)
    fail(Error::value, "num_threads is %lld, expected 1 to %d", static_cast<long long>(threads), INT_MAX);
  launch.num_threads = forked ? 1 : static_cast<int>(threads);
}

PyObject* call_plan(const Operator& op, PyObject* const* objects, Py_ssize_t count) {
  PythonCall call(op, objects, count, op.fields.given, 0);
  call.plan();
  const int64_t bytes = call.workspace_bytes;
  return PyLong_FromLongLong(bytes ? bytes + kAlignment : 0);  // room to align what the framework's allocator returns
}

PyObject* call_launch(const Operator& op, PyObject* const* objects, Py_ssize_t count, Run run) {
  const int all = op.fields.count;
  PythonCall call(op, objects, count, all, 3);
  call.take_workspace(objects[all]);
  call.take_launch(objects[all + 1], objects[all + 2]);
  call.plan();
  if (call.launch.workspace_bytes < call.workspace_bytes)
    fail(Error::value, "workspace holds %lld bytes, %lld are needed",
         static_cast<long long>(call.launch.workspace_bytes), static_cast<long long>(call.workspace_bytes));
  {
    py::gil_scoped_release release;
    run(call);
  }
  Py_RETURN_NONE;
}

void raise_current(const char* op) {
  try {
    throw;
  } catch (const KernelError& error) {
    raise(type_of(error.kind), std::string(op) + ": " + error.what());
  } catch (py::error_already_set& error) {
    error.restore();
    name_operator(op);
  } catch (const py::builtin_exception& error) {
    error.set_error();
    name_operator(op);
  } catch (const std::bad_alloc&) {
    PyErr_Format(PyExc_MemoryError, "%s: no host memory is left", op);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

void define(py::module_& m, const std::string& name, const Operator* op, _PyCFunctionFast function) {
  auto* method =
      new PyMethodDef{strdup(name.c_str()), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
                      METH_FASTCALL, nullptr};  // lives as long as the module, which is never unloaded
  const py::capsule self(op);
  m.attr(name.c_str()) = py::reinterpret_steal<py::object>(PyCFunction_New(method, self.ptr()));
}

}  // namespace sbhal
