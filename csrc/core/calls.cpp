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

void view_workspace(PyObject* object, Launch* out) {
  Tensor workspace;
  view(object, &workspace);
  out->workspace = nullptr;
  out->workspace_bytes = 0;
  if (workspace.ndim < 0) return;
  if (workspace.dtype != DType::u8 || workspace.ndim != 1)
    throw py::type_error("workspace must be one-dimensional uint8");
  const auto address = reinterpret_cast<uintptr_t>(workspace.data);
  const auto aligned = (address + kAlignment - 1) & ~static_cast<uintptr_t>(kAlignment - 1);
  out->workspace = reinterpret_cast<char*>(aligned);
  out->workspace_bytes = workspace.shape[0] - static_cast<int64_t>(aligned - address);
}

void convert_launch(PyObject* stream, PyObject* num_threads, Launch* out) {
  Value number;
  convert('i', stream, &number);
  out->stream = number.integer;
  convert('i', num_threads, &number);
  if (number.integer < 1 || number.integer > INT_MAX)
    fail(Error::value, "num_threads is %lld, expected 1 to %d", static_cast<long long>(number.integer), INT_MAX);
  out->num_threads = forked ? 1 : static_cast<int>(number.integer);
}

Py_ssize_t convert_all(const char* signature, PyObject* const* objects, Py_ssize_t count, int more, Value* values) {
  Py_ssize_t tensors_and_attributes = 0;
  while (signature[tensors_and_attributes] && signature[tensors_and_attributes] != 'L') ++tensors_and_attributes;
  if (count != tensors_and_attributes + more)
    throw py::type_error("takes " + std::to_string(tensors_and_attributes + more) + " arguments, got " +
                         std::to_string(count));
  for (Py_ssize_t i = 0; i < tensors_and_attributes; ++i) convert(signature[i], objects[i], &values[i]);
  return tensors_and_attributes;
}

PyObject* call_plan(const KernelEntry* entry, PyObject* const* objects, Py_ssize_t count) {
  Value values[kMaxArguments];
  convert_all(entry->plan_signature, objects, count, 0, values);
  const int64_t bytes = entry->plan(values);
  return PyLong_FromLongLong(bytes ? bytes + kAlignment : 0);  // room to align what the framework's allocator returns
}

PyObject* call_launch(const KernelEntry* entry, PyObject* const* objects, Py_ssize_t count, Run run) {
  Value values[kMaxArguments];
  const Py_ssize_t at = convert_all(entry->launch_signature, objects, count, 3, values);
  view_workspace(objects[at], &values[at].launch);
  convert_launch(objects[at + 1], objects[at + 2], &values[at].launch);
  const int64_t needed = entry->plan(values), given = values[at].launch.workspace_bytes;
  if (given < needed)
    fail(Error::value, "workspace holds %lld bytes, %lld are needed", static_cast<long long>(given),
         static_cast<long long>(needed));
  {
    py::gil_scoped_release release;
    run(entry, values);
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

void define(py::module_& m, const std::string& name, const KernelEntry* entry, _PyCFunctionFast function) {
  auto* method =
      new PyMethodDef{strdup(name.c_str()), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
                      METH_FASTCALL, nullptr};  // lives as long as the module, which is never unloaded
  const py::capsule self(entry);
  m.attr(name.c_str()) = py::reinterpret_steal<py::object>(PyCFunction_New(method, self.ptr()));
}

}  // namespace sbhal
