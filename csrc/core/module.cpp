// The Python module of the CPU backend: for each operator its plan, its launch, and both in one call. Links neither
// torch nor another backend.
#include <pybind11/pybind11.h>

#include <atomic>

#include "calls.h"
#include "framework.h"
#include "isa.h"

namespace py = pybind11;

namespace sbhal {
namespace {

void run_kernel(const KernelEntry* entry, Value* values) { entry->launch(values); }

void run_unlocked(const KernelEntry* entry, Value* values) {
  py::gil_scoped_release release;
  entry->launch(values);
}

PyObject* launch(const KernelEntry* entry, PyObject* const* objects, Py_ssize_t count) {
  return call_launch(entry, objects, count, run_kernel);
}

// Small workspaces share one tensor, which one call at a time may hold.
struct SharedWorkspace {
  static constexpr int64_t kBytes = 1 << 20;
  py::object tensor;
  Launch view;
  std::atomic_flag held = ATOMIC_FLAG_INIT;
};
SharedWorkspace* shared_workspace;

// Holds the shared workspace from a step on that no other thread can come between, unless another call has it. What a
// holder then does may release the interpreter lock: the allocator is Python code.
class Claim {
 public:
  explicit Claim(SharedWorkspace* shared) : held_(shared && !shared->held.test_and_set() ? shared : nullptr) {}
  ~Claim() {
    if (held_) held_->held.clear();
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  SharedWorkspace* get() const { return held_; }

 private:
  SharedWorkspace* const held_;
};

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

py::object allocate(int64_t bytes, Launch* view) {
  py::object tensor = framework.allocate(bytes);
  view_workspace(tensor.ptr(), view);
  if (view->workspace_bytes < bytes - kAlignment) throw std::bad_alloc();
  return tensor;
}

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
    run_unlocked(entry, values);
    Py_RETURN_NONE;
  }
  const Claim claim(needed + kAlignment <= SharedWorkspace::kBytes ? shared_workspace : nullptr);
  py::object own;
  if (SharedWorkspace* const shared = claim.get()) {
    if (!shared->tensor) shared->tensor = allocate(SharedWorkspace::kBytes, &shared->view);
    launch.workspace = shared->view.workspace, launch.workspace_bytes = shared->view.workspace_bytes;
  } else {
    own = allocate(needed + kAlignment, &launch);
  }
  run_unlocked(entry, values);
  Py_RETURN_NONE;
}

}  // namespace
}  // namespace sbhal

PYBIND11_MODULE(SBHAL_MODULE, m) {
  using namespace sbhal;
  shared_workspace = new SharedWorkspace;
  int used = 0;  // a backend may have kernels for fewer instruction sets
  py::dict versions;
  for (const auto& item : best_kernels(chosen_isa())) {
    const KernelEntry* entry = item.second;
    if (entry->isa > used) used = entry->isa;
    versions[entry->op] = entry->version;
    define(m, item.first + "_plan", entry, entry_point<call_plan>);
    define(m, item.first, entry, entry_point<launch>);
    define(m, item.first + "_run", entry, entry_point<call_run>);
  }
  m.attr("OP_VERSION") = versions;
  m.attr("isa") = isa_name(used);
  m.attr("isa_detected") = isa_name(detected_isa());
  define_bind(m);
}
