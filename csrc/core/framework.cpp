#include "framework.h"

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "calls.h"
#include "check.h"
#include "dlpack.h"

namespace py = pybind11;

namespace sbhal {

Framework framework;

namespace {

PyTypeObject* tensor_class = nullptr;
const DLPackExchangeAPI* exchange = nullptr;
std::string device = "cpu";                             // torch's name of the device type that tensors must be on
std::vector<std::pair<PyObject*, DType>> known_dtypes;  // for torch releases without the exchange table

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

// DLPack's device types: 1 CPU, 2 CUDA and whoever goes by its name, 10 ROCm.
bool is_here(int device_type) { return device == "cpu" ? device_type == 1 : device_type == 2 || device_type == 10; }

void check_place(const char* name, bool here, int64_t ndim) {
  if (!here) fail(Error::value, "%s is not on a %s device", name, device.c_str());
  if (ndim > kMaxDims)
    fail(Error::value, "%s has %lld dimensions, at most %d are accepted", name, static_cast<long long>(ndim), kMaxDims);
}

void view_by_exchange(const char* name, PyObject* object, Tensor* out) {
  DLTensor t;
  if (exchange->dltensor_from_py_object_no_sync(object, &t) != 0) throw py::error_already_set();
  check_place(name, is_here(t.device.device_type), t.ndim);
  out->data = static_cast<char*>(t.data) + t.byte_offset;
  out->dtype = dtype_of(t.dtype);
  out->ndim = t.ndim;
  for (int i = 0; i < t.ndim; ++i) out->shape[i] = t.shape[i], out->stride[i] = t.strides[i];
}

void view_by_attributes(const char* name, py::handle object, Tensor* out) {
  const py::tuple shape = object.attr("shape"), stride = object.attr("stride")();
  const py::object dtype = object.attr("dtype");
  const bool here = std::string(py::str(object.attr("device").attr("type"))) == device;
  check_place(name, here, static_cast<int64_t>(shape.size()));
  out->data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
  out->dtype = DType::none;
  for (const auto& known : known_dtypes)
    if (known.first == dtype.ptr()) out->dtype = known.second;
  out->ndim = static_cast<int32_t>(shape.size());
  for (int i = 0; i < out->ndim; ++i)
    out->shape[i] = shape[i].cast<int64_t>(), out->stride[i] = stride[i].cast<int64_t>();
}

// Python could not convert an argument: its words, and whose they are.
[[noreturn]] void fail_as_python(const char* name) {
  const Error kind = PyErr_ExceptionMatches(PyExc_TypeError) ? Error::type : Error::value;
  const py::error_already_set error;
  fail(kind, "%s: %s", name, std::string(py::str(error.value())).c_str());
}

Text to_text(const char* name, PyObject* object) {
  if (!PyUnicode_Check(object)) fail(Error::type, "%s is %s, expected a str", name, Py_TYPE(object)->tp_name);
  Py_ssize_t length;
  const Text text = PyUnicode_AsUTF8AndSize(object, &length);
  if (!text) fail_as_python(name);
  if (std::strlen(text) != static_cast<size_t>(length)) fail(Error::value, "%s holds a null character", name);
  return text;
}

double to_number(const char* name, PyObject* object) {
  const double number = PyFloat_AsDouble(object);
  if (number == -1.0 && PyErr_Occurred()) fail_as_python(name);
  return number;
}

}  // namespace

int64_t to_integer(const char* name, PyObject* object) {
  const int64_t integer = PyLong_AsLongLong(object);
  if (integer == -1 && PyErr_Occurred()) fail_as_python(name);
  return integer;
}

void view(const char* name, PyObject* object, Tensor* out) {
  if (object == Py_None) {
    *out = kAbsent;
    return;
  }
  if (!tensor_class) throw std::runtime_error("bind() has not been called");
  if (!PyObject_TypeCheck(object, tensor_class))
    fail(Error::type, "%s is %s, expected a torch.Tensor", name, Py_TYPE(object)->tp_name);
  if (exchange)
    view_by_exchange(name, object, out);
  else
    view_by_attributes(name, object, out);
}

void convert(const char* name, const Field& field, PyObject* object, void* place) {
  switch (field.type->code) {
    case 'd': *static_cast<double*>(place) = to_number(name, object); return;
    case 'i': *static_cast<int64_t*>(place) = to_integer(name, object); return;
    case 'b': *static_cast<bool*>(place) = to_integer(name, object) != 0; return;
    case 's': *static_cast<Text*>(place) = to_text(name, object); return;
  }
  Tensor* const tensor = static_cast<Tensor*>(place);
  view(name, object, tensor);
  if (tensor->ndim < 0 && field.type->code != 'O') fail(Error::type, "%s is None, expected a tensor", name);
  if (field.type->code == 'W') check_own_memory(name, *tensor);
}

// Null for a torch without one, and for one of another major version.
static const DLPackExchangeAPI* exchange_table(const py::type& tensor_type) {
  if (!py::hasattr(tensor_type, "__dlpack_c_exchange_api__")) return nullptr;
  const py::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
  const auto* table =
      static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr())));
  if (!table) throw py::error_already_set();
  return table->header.version.major == 1 ? table : nullptr;
}

static std::vector<std::pair<PyObject*, DType>> read_dtypes(const py::dict& dtypes) {
  static const std::map<std::string, DType> names = {
      {"float32", DType::f32}, {"bfloat16", DType::bf16}, {"float16", DType::f16}, {"float64", DType::f64},
      {"int8", DType::i8},     {"int16", DType::i16},     {"int32", DType::i32},   {"int64", DType::i64},
      {"uint8", DType::u8},    {"bool", DType::boolean}};
  std::vector<std::pair<PyObject*, DType>> known;
  for (const auto& item : dtypes)
    known.emplace_back(item.second.inc_ref().ptr(), names.at(item.first.cast<std::string>()));
  return known;
}

// Asks for all first, which runs Python code, then keeps it in one step: calls may run meanwhile.
static void bind(const std::string& device_type, const py::type& tensor_type, const py::dict& dtypes, bool use_exchange,
                 const py::dict& errors, const py::object& empty, bool forked) {
  const DLPackExchangeAPI* const table = use_exchange ? exchange_table(tensor_type) : nullptr;
  auto known = read_dtypes(dtypes);
  py::object unsupported = errors["unsupported"], stride = errors["stride"], device_error = errors["device"];

  framework.unsupported = unsupported.release().ptr();
  framework.stride = stride.release().ptr();
  framework.device_error = device_error.release().ptr();
  framework.empty = empty.inc_ref().ptr();
  device = device_type;
  known_dtypes = std::move(known);
  exchange = table;
  tensor_class = reinterpret_cast<PyTypeObject*>(tensor_type.inc_ref().ptr());
  if (forked) note_fork();
}

void define_bind(py::module_& m) {
  m.def("bind", &bind);
  m.def("uses_exchange_table", [] { return framework.uses_exchange_table(); });
}

bool Framework::uses_exchange_table() const { return exchange != nullptr; }

}  // namespace sbhal
