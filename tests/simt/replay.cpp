// Runs recorded calls on a simulated device without Python or torch, for race detectors: `replay CALLS`. The file's
// format is described in record.py. Prints an operator and what became of it for each call; exits with 1 after an
// error.
//
// Link it with kernels (csrc/ops/*/*_gpu.hip compiled as C++), csrc/core/check.cpp and csrc/simt.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/arguments.h"
#include "core/error.h"
#include "simt/memory.h"

extern "C" {
extern const sbhal::KernelEntry* const __start_sbhal_kernels[] __attribute__((visibility("hidden")));
extern const sbhal::KernelEntry* const __stop_sbhal_kernels[] __attribute__((visibility("hidden")));
}

namespace sbhal {
namespace {

const KernelEntry* find(const std::string& op) {
  for (auto entry = __start_sbhal_kernels; entry != __stop_sbhal_kernels; ++entry)
    if (op == (*entry)->op) return *entry;
  throw std::runtime_error("no kernel of this name is linked");
}

DType dtype_of(const std::string& name) {
  for (int i = 1; i <= static_cast<int>(DType::boolean); ++i)
    if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
  throw std::runtime_error("unknown dtype " + name);
}

// A recorded call; it owns what the arguments point to.
class Recorded {
 public:
  explicit Recorded(std::ifstream& file) : file_(file) {}

  // False at the end of the file.
  bool read() {
    std::string word;
    int count;
    if (!(file_ >> word)) return false;
    if (word != "call" || !(file_ >> op_ >> count)) throw std::runtime_error("not a file of calls");
    entry_ = find(op_);
    fields_ = fields_of(entry_->arguments);
    if (fields_.count != count) throw std::runtime_error("recorded with other arguments than the kernel has");
    for (int i = 0; i < count; ++i) read_argument(fields_.at[i]);
    return true;
  }
  const std::string& op() const { return op_; }

  void run() {
    Call call = {entry_, &fields_, arguments_, planned_, 0, {}};
    call.workspace_bytes = entry_->plan(arguments_, planned_);
    call.launch = {call.workspace_bytes ? allocate(call.workspace_bytes) : nullptr, call.workspace_bytes, 0, 2};
    simt::run_staged(call);
  }

 private:
  char* allocate(size_t bytes) {
    buffers_.emplace_back(bytes + 256);
    char* p = buffers_.back().data();
    return p + (256 - reinterpret_cast<uintptr_t>(p) % 256) % 256;
  }

  void read_argument(const Field& field) {
    char* const place = arguments_ + field.offset;
    std::string kind, text;
    file_ >> kind;
    if (kind == "T") return read_tensor(*reinterpret_cast<Tensor*>(place));
    file_.get();
    std::getline(file_, text);
    switch (field.type->code) {
      case 's':
        texts_.push_back(text);
        *reinterpret_cast<Text*>(place) = texts_.back().c_str();
        return;
      case 'd': *reinterpret_cast<double*>(place) = std::strtod(text.c_str(), nullptr); return;
      case 'i': *reinterpret_cast<int64_t*>(place) = std::strtoll(text.c_str(), nullptr, 10); return;
      case 'b': *reinterpret_cast<bool*>(place) = text == "1"; return;
    }
    throw std::runtime_error("recorded a value where the kernel takes a tensor");
  }

  void read_tensor(Tensor& t) {
    std::string dtype;
    int64_t bytes;
    file_ >> dtype;
    t = {};
    t.ndim = -1;
    if (dtype == "none") return;
    t.dtype = dtype_of(dtype);
    file_ >> t.ndim;
    if (t.ndim > kMaxDims) throw std::runtime_error("too many dimensions");
    for (int i = 0; i < t.ndim; ++i) file_ >> t.shape[i];
    for (int i = 0; i < t.ndim; ++i) file_ >> t.stride[i];
    file_ >> bytes;
    file_.get();
    t.data = allocate(bytes);
    file_.read(static_cast<char*>(t.data), bytes);
    if (!file_) throw std::runtime_error("the file ends within a tensor");
  }

  std::ifstream& file_;
  std::string op_;
  const KernelEntry* entry_ = nullptr;
  Fields fields_ = {};
  alignas(64) char arguments_[kMaxArgumentBytes];
  alignas(64) char planned_[kMaxPlanned];
  std::deque<std::vector<char>> buffers_;
  std::deque<std::string> texts_;
};

bool replay(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot be read");
  bool good = true;
  for (int calls = 0;; ++calls) {
    Recorded call(file);
    if (!call.read()) return good && calls > 0;
    std::printf("%s: ", call.op().c_str());
    std::fflush(stdout);  // before a detector's report, or a crash
    try {
      call.run();
      std::printf("ok\n");
    } catch (const KernelError& error) {
      good = good && error.kind == Error::unsupported;
      std::printf("%s: %s\n", error.kind == Error::unsupported ? "refused" : "error", error.what());
    } catch (const std::exception& error) {
      good = false;
      std::printf("error: %s\n", error.what());
    }
  }
}

}  // namespace
}  // namespace sbhal

int main(int count, char** arguments) {
  try {
    if (count != 2) throw std::runtime_error("usage: replay CALLS");
    return sbhal::replay(arguments[1]) ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
}
