// The Python module of a host backend: for each operator its plan, its launch, and both in one call. Links neither
// torch nor another backend.
#include <pthread.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>

#include "error.h"
#include "framework.h"
#include "isa.h"

namespace py = pybind11;

namespace sbhal {
namespace {

constexpr int kMaxArguments = 48;
constexpr int64_t kAlignment = 256;

bool forked = false;  // libgomp's workers do not survive a fork: two threads would hang, one is right

// The workspace that a caller brought, from the next 256-byte boundary on.
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
  if (number.integer < 1) throw py::value_error("num_threads must be at least 1");
  out->num_threads = forked ? 1 : static_cast<int>(number.integer);
}

// Every argument but the launch. Raises unless there are `more` objects beyond those.
Py_ssize_t convert_all(const char* signature, PyObject* const* objects, Py_ssize_t count, int more, Value* values) {
  Py_ssize_t tensors_and_attributes = 0;
  while (signature[tensors_and_attributes] && signature[tensors_and_attributes] != 'L') ++tensors_and_attributes;
  if (count != tensors_and_attributes + more)
    throw py::type_error("takes " + std::to_string(tensors_and_attributes + more) + " arguments, got " +
                         std::to_string(count));
  for (Py_ssize_t i = 0; i < tensors_and_attributes; ++i) convert(signature[i], objects[i], &values[i]);
  return tensors_and_attributes;
}

void run_kernel(const KernelEntry* entry, const Value* values) {
  py::gil_scoped_release release;
  entry->launch(values);
}

PyObject* call_plan(const KernelEntry* entry, PyObject* const* objects, Py_ssize_t count) {
  Value values[kMaxArguments];
  convert_all(entry->plan_signature, objects, count, 0, values);
  const int64_t bytes = entry->plan(values);
  return PyLong_FromLongLong(bytes ? bytes + kAlignment : 0);  // room to align what the framework's allocator returns
}

PyObject* call_launch(const KernelEntry* entry, PyObject* const* objects, Py_ssize_t count) {
  Value values[kMaxArguments];
  const Py_ssize_t at = convert_all(entry->launch_signature, objects, count, 3, values);
  view_workspace(objects[at], &values[at].launch);
  convert_launch(objects[at + 1], objects[at + 2], &values[at].launch);
  const int64_t needed = entry->plan(values), given = values[at].launch.workspace_bytes;
  if (given < needed)
    fail(Error::value, "workspace holds %lld bytes, %lld are needed", static_cast<long long>(given),
         static_cast<long long>(needed));
  run_kernel(entry, values);
  Py_RETURN_NONE;
}

// Small workspaces share one tensor, which one call at a time may hold; the interpreter lock guards the flag.
struct SharedWorkspace {
  static constexpr int64_t kBytes = 1 << 20;
  py::object tensor;
  Launch view;
  bool held = false;
};
SharedWorkspace* shared_workspace;

// Work too small to be worth waking threads for; starting and joining them costs as much as some 10 us of work.
bool small(const char* signature, const Value* values) {
  int64_t elements = 0;
  for (int i = 0; signature[i]; ++i) {
    if (signature[i] != 'T' || values[i].tensor.ndim < 0) continue;
    int64_t count = 1;
    for (int d = 0; d < values[i].tensor.ndim; ++d) count *= values[i].tensor.shape[d];
    elements += count;
  }
  return elements < (1 << 16);
}

struct Held {
  bool* flag;
  explicit Held(bool* f) : flag(f) { *flag = true; }
  ~Held() { *flag = false; }
};

// Plan, workspace and launch in one call: what the dispatcher uses.
PyObject* call_run(const KernelEntry* entry, PyObject* const* objects, Py_ssize_t count) {
  Value values[kMaxArguments];
  const Py_ssize_t at = convert_all(entry->launch_signature, objects, count, 2, values);
  Launch& launch = values[at].launch;
  convert_launch(objects[at], objects[at + 1], &launch);
  const int64_t needed = entry->plan(values);
  if (small(entry->launch_signature, values)) launch.num_threads = 1;
  if (!needed) {
    launch.workspace = nullptr, launch.workspace_bytes = 0;
    run_kernel(entry, values);
    Py_RETURN_NONE;
  }
  SharedWorkspace& shared = *shared_workspace;
  if (needed + kAlignment > SharedWorkspace::kBytes || shared.held) {
    const py::object workspace = framework.allocate(needed + kAlignment);
    view_workspace(workspace.ptr(), &launch);
    run_kernel(entry, values);
    Py_RETURN_NONE;
  }
  if (!shared.tensor) {
    shared.tensor = framework.allocate(SharedWorkspace::kBytes);
    view_workspace(shared.tensor.ptr(), &shared.view);
  }
  launch.workspace = shared.view.workspace, launch.workspace_bytes = shared.view.workspace_bytes;
  const Held held(&shared.held);
  run_kernel(entry, values);
  Py_RETURN_NONE;
}

void set_error(const char* op, const KernelError& error) {
  PyObject* type = PyExc_ValueError;
  if (error.kind == Error::type) type = PyExc_TypeError;
  if (error.kind == Error::unsupported && framework.unsupported) type = framework.unsupported;
  if (error.kind == Error::stride && framework.stride) type = framework.stride;
  PyErr_SetString(type, (std::string(op) + ": " + error.what()).c_str());
}

using Call = PyObject* (*)(const KernelEntry*, PyObject* const*, Py_ssize_t);

// pybind11's own dispatch would cost as much again as the rest of a small call.
template <Call call> PyObject* entry_point(PyObject* self, PyObject* const* objects, Py_ssize_t count) {
  const auto* entry = static_cast<const KernelEntry*>(PyCapsule_GetPointer(self, nullptr));
  try {
    return call(entry, objects, count);
  } catch (const KernelError& error) {
    set_error(entry->op, error);
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <Call call> void define(py::module_& m, const std::string& name, const KernelEntry* entry) {
  auto* method = new PyMethodDef{strdup(name.c_str()), reinterpret_cast<PyCFunction>(entry_point<call>), METH_FASTCALL,
                                 nullptr};  // lives as long as the module, which is never unloaded
  const py::capsule self(entry);
  m.attr(name.c_str()) = py::reinterpret_steal<py::object>(PyCFunction_New(method, self.ptr()));
}

}  // namespace
}  // namespace sbhal

PYBIND11_MODULE(_native, m) {
  using namespace sbhal;
  const int isa = chosen_isa();
  shared_workspace = new SharedWorkspace;
  py::dict versions;
  for (const auto& item : best_kernels(isa)) {
    const KernelEntry* entry = item.second;
    versions[entry->op] = entry->version;
    define<call_plan>(m, item.first + "_plan", entry);
    define<call_launch>(m, item.first, entry);
    define<call_run>(m, item.first + "_run", entry);
  }
  m.attr("OP_VERSION") = versions;
  m.attr("isa") = isa_name(isa);
  m.attr("isa_detected") = isa_name(detected_isa());
  m.def("bind", &bind,
        "Tells the module which framework's tensors to read, which exceptions to raise, and how to get memory.");
  m.def("uses_exchange_table", [] { return framework.uses_exchange_table(); });
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}
