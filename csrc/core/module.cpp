// The Python module of a host backend: turns tensors into views, finds each operator's kernel for this processor,
// and raises its refusals as Python exceptions. Links neither torch nor another backend.
#include <pthread.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "dlpack.h"
#include "error.h"
#include "tensor.h"

namespace py = pybind11;

extern "C" {
// The linker gathers every SBHAL_CPU_KERNEL pointer between these two.
extern const sbhal::KernelEntry* const __start_sbhal_kernels[] __attribute__((visibility("hidden")));
extern const sbhal::KernelEntry* const __stop_sbhal_kernels[] __attribute__((visibility("hidden")));
}

namespace sbhal {
namespace {

constexpr int kMaxArguments = 48;
const char* const kIsaNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};
constexpr int kIsaCount = 4;

bool forked = false;  // libgomp's workers do not survive a fork: two threads would hang, one is right

// ---- tensors

struct Framework {
  PyTypeObject* tensor_type = nullptr;
  const DLPackExchangeAPI* exchange = nullptr;
  std::vector<std::pair<PyObject*, DType>> dtypes;  // for torch releases without the exchange table
  PyObject* unsupported = nullptr;
  PyObject* stride = nullptr;
} framework;

DType dtype_of(DLDataType t) {
  if (t.lanes != 1) return DType::none;
  switch (t.code << 8 | t.bits) {
    case 0 << 8 | 8: return DType::i8;
    case 0 << 8 | 16: return DType::i16;
    case 0 << 8 | 32: return DType::i32;
    case 0 << 8 | 64: return DType::i64;
    case 1 << 8 | 8: return DType::u8;
    case 2 << 8 | 16: return DType::f16;
    case 2 << 8 | 32: return DType::f32;
    case 2 << 8 | 64: return DType::f64;
    case 4 << 8 | 16: return DType::bf16;
    case 6 << 8 | 8: return DType::boolean;
    default: return DType::none;
  }
}

void check_rank(py::ssize_t ndim) {
  if (ndim > kMaxDims)
    throw py::value_error("a tensor has " + std::to_string(ndim) + " dimensions, at most 8 are accepted");
}

void view_by_exchange(PyObject* object, Tensor* out) {
  DLTensor t;
  if (framework.exchange->dltensor_from_py_object_no_sync(object, &t) != 0) throw py::error_already_set();
  if (t.device.device_type != 1) throw py::value_error("a tensor is not on the CPU");
  check_rank(t.ndim);
  out->data = static_cast<char*>(t.data) + t.byte_offset;
  out->dtype = dtype_of(t.dtype);
  out->ndim = t.ndim;
  for (int i = 0; i < t.ndim; ++i) out->shape[i] = t.shape[i], out->stride[i] = t.strides[i];
}

void view_by_attributes(py::handle object, Tensor* out) {
  if (std::string(py::str(object.attr("device").attr("type"))) != "cpu")
    throw py::value_error("a tensor is not on the CPU");
  const py::tuple shape = object.attr("shape"), stride = object.attr("stride")();
  const py::object dtype = object.attr("dtype");
  check_rank(static_cast<py::ssize_t>(shape.size()));
  out->data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
  out->dtype = DType::none;
  for (const auto& known : framework.dtypes)
    if (known.first == dtype.ptr()) out->dtype = known.second;
  out->ndim = static_cast<int32_t>(shape.size());
  for (int i = 0; i < out->ndim; ++i)
    out->shape[i] = shape[i].cast<int64_t>(), out->stride[i] = stride[i].cast<int64_t>();
}

void view(PyObject* object, Tensor* out) {
  if (object == Py_None) {
    out->data = nullptr;
    out->dtype = DType::none;
    out->ndim = -1;
    return;
  }
  if (!framework.tensor_type) throw std::runtime_error("bind() has not been called");
  if (!PyObject_TypeCheck(object, framework.tensor_type))
    throw py::type_error(std::string("expected a torch.Tensor or None, got ") + Py_TYPE(object)->tp_name);
  if (framework.exchange)
    view_by_exchange(object, out);
  else
    view_by_attributes(object, out);
}

// ---- calls

void convert(char code, PyObject* object, Value* out) {
  switch (code) {
    case 'T': return view(object, &out->tensor);
    case 'd':
      out->number = PyFloat_AsDouble(object);
      if (out->number == -1.0 && PyErr_Occurred()) throw py::error_already_set();
      return;
    case 's':
      if (!PyUnicode_Check(object))
        throw py::type_error(std::string("expected a str, got ") + Py_TYPE(object)->tp_name);
      out->text = PyUnicode_AsUTF8(object);
      if (!out->text) throw py::error_already_set();
      return;
    default:
      out->integer = PyLong_AsLongLong(object);
      if (out->integer == -1 && PyErr_Occurred()) throw py::error_already_set();
  }
}

void convert_launch(PyObject* const* objects, Launch* out) {
  Tensor workspace;
  view(objects[0], &workspace);
  out->workspace = nullptr;
  out->workspace_bytes = 0;
  if (workspace.ndim >= 0) {
    if (workspace.dtype != DType::u8 || workspace.ndim != 1)
      throw py::type_error("workspace must be one-dimensional uint8");
    const auto address = reinterpret_cast<uintptr_t>(workspace.data);
    const auto aligned = (address + 255) & ~static_cast<uintptr_t>(255);
    out->workspace = reinterpret_cast<char*>(aligned);
    out->workspace_bytes = workspace.shape[0] - static_cast<int64_t>(aligned - address);
  }
  Value number;
  convert('i', objects[1], &number);
  out->stream = number.integer;
  convert('i', objects[2], &number);
  if (number.integer < 1) throw py::value_error("num_threads must be at least 1");
  out->num_threads = forked ? 1 : static_cast<int>(number.integer);
}

void convert_all(const char* signature, const py::args& args, Value* values) {
  Py_ssize_t expected = 0;
  for (const char* c = signature; *c; ++c) expected += *c == 'L' ? 3 : 1;
  if (PyTuple_GET_SIZE(args.ptr()) != expected)
    throw py::type_error("takes " + std::to_string(expected) + " arguments, got " +
                         std::to_string(PyTuple_GET_SIZE(args.ptr())));
  PyObject* const* objects = reinterpret_cast<PyTupleObject*>(args.ptr())->ob_item;
  for (int i = 0; signature[i]; ++i)
    if (signature[i] == 'L')
      convert_launch(objects + i, &values[i].launch);
    else
      convert(signature[i], objects[i], &values[i]);
}

[[noreturn]] void raise(const char* op, const KernelError& error) {
  PyObject* type = PyExc_ValueError;
  if (error.kind == Error::type) type = PyExc_TypeError;
  if (error.kind == Error::unsupported && framework.unsupported) type = framework.unsupported;
  if (error.kind == Error::stride && framework.stride) type = framework.stride;
  PyErr_SetString(type, (std::string(op) + ": " + error.what()).c_str());
  throw py::error_already_set();
}

int64_t call_plan(const KernelEntry* entry, const py::args& args) {
  Value values[kMaxArguments];
  convert_all(entry->plan_signature, args, values);
  try {
    const int64_t bytes = entry->plan(values);
    return bytes ? bytes + 256 : 0;  // room to align what the framework's allocator returns
  } catch (const KernelError& error) {
    raise(entry->op, error);
  }
}

void call_launch(const KernelEntry* entry, const py::args& args) {
  Value values[kMaxArguments];
  convert_all(entry->launch_signature, args, values);
  try {
    const int64_t needed = entry->plan(values);
    const char* last = std::strchr(entry->launch_signature, 'L');
    const Launch& launch = values[last - entry->launch_signature].launch;
    if (launch.workspace_bytes < needed)
      fail(Error::value, "workspace holds %lld bytes, %lld are needed", static_cast<long long>(launch.workspace_bytes),
           static_cast<long long>(needed));
    py::gil_scoped_release release;
    entry->launch(values);
  } catch (const KernelError& error) {
    raise(entry->op, error);
  }
}

// ---- instruction sets

int detected_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd");
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("bmi");
  if (v4 && v3 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) return 3;
  if (v4 && v3) return 2;
  if (v3) return 1;
#endif
  return 0;
}

int chosen_isa() {
  const char* forced = std::getenv("SBHAL_CPU_ISA");
  if (!forced || !*forced) return detected_isa();
  for (int i = 0; i < kIsaCount; ++i)
    if (std::strcmp(forced, kIsaNames[i]) == 0) {
      if (i > detected_isa())
        throw py::import_error(std::string("SBHAL_CPU_ISA=") + forced + ": this processor stops at " +
                               kIsaNames[detected_isa()]);
      return i;
    }
  throw py::import_error(std::string("SBHAL_CPU_ISA=") + forced +
                         ": accepted are portable, avx2, avx512 and avx512_bf16");
}

std::map<std::string, const KernelEntry*> best_kernels(int isa) {
  std::map<std::string, const KernelEntry*> best;
  for (auto p = __start_sbhal_kernels; p != __stop_sbhal_kernels; ++p) {
    const KernelEntry* entry = *p;
    auto found = best.find(entry->op);
    if (entry->isa <= isa && (found == best.end() || found->second->isa < entry->isa)) best[entry->op] = entry;
  }
  return best;
}

void bind(const py::type& tensor_type, const py::dict& dtypes, bool use_exchange, const py::object& unsupported,
          const py::object& stride) {
  static const std::map<std::string, DType> names = {
      {"float32", DType::f32}, {"bfloat16", DType::bf16}, {"float16", DType::f16}, {"float64", DType::f64},
      {"int8", DType::i8},     {"int16", DType::i16},     {"int32", DType::i32},   {"int64", DType::i64},
      {"uint8", DType::u8},    {"bool", DType::boolean}};
  framework.tensor_type = reinterpret_cast<PyTypeObject*>(tensor_type.inc_ref().ptr());
  framework.unsupported = unsupported.inc_ref().ptr();
  framework.stride = stride.inc_ref().ptr();
  framework.dtypes.clear();
  for (const auto& item : dtypes)
    framework.dtypes.emplace_back(item.second.inc_ref().ptr(), names.at(item.first.cast<std::string>()));
  framework.exchange = nullptr;
  if (use_exchange && py::hasattr(tensor_type, "__dlpack_c_exchange_api__")) {
    const py::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
    const auto* table =
        static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr())));
    if (!table) throw py::error_already_set();
    if (table->header.version.major == 1) framework.exchange = table;
  }
}

}  // namespace
}  // namespace sbhal

PYBIND11_MODULE(_native, m) {
  using namespace sbhal;
  const int isa = chosen_isa();
  py::dict versions;
  for (const auto& item : best_kernels(isa)) {
    const KernelEntry* entry = item.second;
    versions[entry->op] = entry->version;
    m.def((item.first + "_plan").c_str(), [entry](const py::args& args) { return call_plan(entry, args); });
    m.def(item.first.c_str(), [entry](const py::args& args) { call_launch(entry, args); });
  }
  m.attr("OP_VERSION") = versions;
  m.attr("isa") = kIsaNames[isa];
  m.attr("isa_detected") = kIsaNames[detected_isa()];
  m.def("bind", &bind, "Tells the module which framework's tensors to read, and which exceptions to raise.");
  m.def("uses_exchange_table", [] { return framework.exchange != nullptr; });
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}
