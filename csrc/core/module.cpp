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

void run(Call& call) { call.entry->launch(call.arguments, call.planned, call.launch); }

PyObject* launch(const Operator& op, PyObject* const* objects, Py_ssize_t count) {
  return call_launch(op, objects, count, run);
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
bool small(const Call& call) {
  int64_t elements = 0;
  for (int i = 0; i < call.fields->count; ++i) {
    const Tensor* const tensor = call.tensor(i);
    if (!tensor || tensor->ndim < 0) continue;
    int64_t count = 1;
    for (int d = 0; d < tensor->ndim; ++d) count *= tensor->shape[d];
    elements += count;
  }
  return elements < (1 << 16);
}

// At least as many bytes as the plan asked for, from the framework.
py::object allocate(int64_t bytes, PythonCall* call) {
  py::object tensor = framework.allocate(bytes);
  call->take_workspace(tensor.ptr());
  if (call->launch.workspace_bytes < call->workspace_bytes) throw std::bad_alloc();
  return tensor;
}

// Plan, workspace and launch in one call: what the dispatcher uses.
PyObject* call_run(const Operator& op, PyObject* const* objects, Py_ssize_t count) {
  const int all = op.fields.count;
  PythonCall call(op, objects, count, all, 2);
  call.take_launch(objects[all], objects[all + 1]);
  call.plan();
  if (small(call)) call.launch.num_threads = 1;
  const int64_t wanted = call.workspace_bytes ? call.workspace_bytes + kAlignment : 0;
  const Claim claim(wanted && wanted <= SharedWorkspace::kBytes ? shared_workspace : nullptr);
  py::object own;
  if (SharedWorkspace* const shared = claim.get()) {
    if (!shared->tensor) {
      shared->tensor = allocate(SharedWorkspace::kBytes, &call);
      shared->view = call.launch;
    }
    call.launch.workspace = shared->view.workspace, call.launch.workspace_bytes = shared->view.workspace_bytes;
  } else if (wanted) {
    own = allocate(wanted, &call);
  }
  {
    py::gil_scoped_release release;
    run(call);
  }
  Py_RETURN_NONE;
}

}  // namespace
}  // namespace sbhal

PYBIND11_MODULE(SBHAL_MODULE, m) {
  using namespace sbhal;
  shared_workspace = new SharedWorkspace;
  int used = 0;  // a backend may have kernels for fewer instruction sets
  py::dict versions, signatures;
  for (const auto& item : best_kernels(chosen_isa())) {
    const KernelEntry* entry = item.second;
    if (entry->isa > used) used = entry->isa;
    const auto* op = new Operator(entry);  // lives as long as the module, which is never unloaded
    versions[entry->op] = entry->version;
    signatures[entry->op] = op->signature();
    define(m, item.first + "_plan", op, entry_point<call_plan>);
    define(m, item.first, op, entry_point<launch>);
    define(m, item.first + "_run", op, entry_point<call_run>);
  }
  m.attr("OP_VERSION") = versions;
  m.attr("OP_SIGNATURE") = signatures;
  m.attr("isa") = isa_name(used);
  m.attr("isa_detected") = isa_name(detected_isa());
  define_bind(m);
}
