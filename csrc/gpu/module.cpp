// The Python module of a GPU backend: for each operator its plan and its launch, and what devices there are. Links
// neither torch nor another backend.
#include <pybind11/pybind11.h>

#include "core/calls.h"
#include "core/framework.h"
#include "core/registry.h"
#include "device.h"

namespace py = pybind11;

namespace sbhal {
namespace {

PyObject* launch(const Operator& op, PyObject* const* objects, Py_ssize_t count) {
  return call_launch(op, objects, count, run_on_device);
}

py::dict describe(int index) {
  const Device d = device_info(index);
  py::dict out;
  out["name"] = d.name;
  out["wavefront"] = d.wave;
  out["shared memory per block"] = d.shared_memory;
  out["multiprocessors"] = d.multiprocessors;
  out["memory"] = d.memory;
  if (d.major) out["compute capability"] = std::to_string(d.major) + "." + std::to_string(d.minor);
  if (const int version = driver_version()) out["driver"] = version;
  return out;
}

}  // namespace
}  // namespace sbhal

PYBIND11_MODULE(SBHAL_MODULE, m) {
  using namespace sbhal;
  py::dict versions, signatures;
  for (auto p = __start_sbhal_kernels; p != __stop_sbhal_kernels; ++p) {
    const KernelEntry* entry = *p;
    if (versions.contains(entry->op)) refuse_second_kernel(entry->op);
    versions[entry->op] = entry->version;
    const auto* op = new Operator(entry);  // lives as long as the module, which is never unloaded
    signatures[entry->op] = op->signature();
    define(m, std::string(entry->op) + "_plan", op, entry_point<call_plan>);
    define(m, entry->op, op, entry_point<launch>);
  }
  m.attr("OP_VERSION") = versions;
  m.attr("OP_SIGNATURE") = signatures;
  m.attr("simulated") = is_simulated();
  m.def("problem", &device_problem, "Why no device can be used, empty if one can.");
  m.def("device_count", &device_count);
  m.def("device", &describe, py::arg("index"), "What a device is.");
  define_bind(m);
}
