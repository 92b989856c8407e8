#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <optional>
#include <vector>

#include "region.h"
#include "simt.h"

namespace simt {
namespace {

using sbhal::DType;
using sbhal::Tensor;

size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16:
    case DType::i16: return 2;
    default: return 1;
  }
}

// The memory from a tensor's lowest byte to its highest.
struct Extent {
  char *begin, *end;
  bool dense;  // every byte belongs to the tensor
};

Extent extent_of(const Tensor& t) {
  const auto item = static_cast<int64_t>(size_of(t.dtype));
  int64_t low = 0, high = item, elements = 1;
  for (int i = 0; i < t.ndim; ++i) {
    const int64_t reach = (t.shape[i] - 1) * t.stride[i] * item;
    (reach < 0 ? low : high) += reach;
    elements *= t.shape[i];
  }
  auto* data = static_cast<char*>(t.data);
  if (elements == 0) return {data, data, true};
  return {data + low, data + high, high - low == elements * item};
}

// Host memory and its copy. Tensors that overlap share one.
struct Copy {
  Extent host;
  Region device;
  explicit Copy(Extent e) : host(e), device(e.end - e.begin, 16, reinterpret_cast<uintptr_t>(e.begin) % 16) {}
  void bring_in() { std::memcpy(device.data(), host.begin, device.bytes()); }

  // Only what changed is written, so that inputs may be read-only.
  void bring_back() const {
    constexpr size_t kChunk = 256;
    for (size_t i = 0; i < device.bytes(); i += kChunk) {
      const size_t bytes = std::min(kChunk, device.bytes() - i);
      char* to = host.begin + i;
      const char* from = device.data() + i;
      if (std::memcmp(to, from, bytes) == 0) continue;
      if (host.dense)
        std::memcpy(to, from, bytes);
      else
        for (size_t j = 0; j < bytes; ++j)
          if (to[j] != from[j]) to[j] = from[j];
    }
  }
};

thread_local Staged* current = nullptr;

}  // namespace

// The staged arguments of one call. What its first grid finds is what the host has by then; what a grid changed is
// brought back when it ends, so that memory is open only while grids run.
class Staged {
 public:
  explicit Staged(sbhal::Call& call);
  ~Staged();
  Staged(const Staged&) = delete;
  Staged& operator=(const Staged&) = delete;

  void open();  // all of it, or none where memory is short
  void close() noexcept;
  const char* bring_back();

 private:
  struct Argument {
    Tensor* tensor;
    char* data;  // on the host
    Extent extent;
    int number;
    const Copy* copy;
  };
  void stage_tensors();
  void stage_workspace(int64_t bytes);
  void fill();

  std::vector<Argument> arguments_;  // by address, once they are staged
  std::deque<Copy> copies_;
  sbhal::Launch* const launch_;
  const sbhal::Launch given_;
  std::optional<Region> workspace_;
  bool filled_ = false;
  char damage_[64];
};

Staged::Staged(sbhal::Call& call) : launch_(&call.launch), given_(call.launch) {
  for (int i = 0; i < call.fields->count; ++i) {
    Tensor* const t = call.tensor(i);
    if (t && t->ndim >= 0 && t->data)
      arguments_.push_back({t, static_cast<char*>(t->data), extent_of(*t), i + 1, nullptr});
  }
  stage_tensors();
  stage_workspace(call.workspace_bytes);
  current = this;
}

Staged::~Staged() {
  current = nullptr;
  for (const Argument& argument : arguments_) argument.tensor->data = argument.data;
  *launch_ = given_;
}

void Staged::stage_tensors() {
  std::sort(arguments_.begin(), arguments_.end(),
            [](const Argument& a, const Argument& b) { return a.extent.begin < b.extent.begin; });
  for (size_t first = 0, end; first < arguments_.size(); first = end) {
    Extent whole = arguments_[first].extent;
    for (end = first + 1; end < arguments_.size() && arguments_[end].extent.begin < whole.end; ++end) {
      const Extent& next = arguments_[end].extent;
      whole.dense = whole.dense && next.dense;
      whole.end = std::max(whole.end, next.end);
    }
    const Copy* copy = whole.begin == whole.end ? nullptr : &copies_.emplace_back(whole);
    for (size_t i = first; i < end; ++i) {
      Argument& argument = arguments_[i];
      argument.copy = copy;
      argument.tensor->data = copy ? copy->device.data() + (argument.data - whole.begin) : nowhere();
    }
  }
}

// As many bytes as the plan asked for.
void Staged::stage_workspace(int64_t bytes) {
  if (!given_.workspace) return;
  if (bytes) workspace_.emplace(bytes, 256, 0);
  launch_->workspace = bytes ? workspace_->data() : nowhere();
  launch_->workspace_bytes = bytes;
}

void Staged::open() {
  try {
    for (Copy& copy : copies_) copy.device.open();
    if (workspace_) workspace_->open();
  } catch (...) {
    close();
    throw;
  }
  if (!filled_) fill();
  filled_ = true;
}

void Staged::fill() {
  for (Copy& copy : copies_) {
    copy.device.guard();
    copy.bring_in();
  }
  if (!workspace_) return;
  workspace_->guard();
  std::memset(workspace_->data(), 0xff, workspace_->bytes());  // NaN
}

void Staged::close() noexcept {
  for (Copy& copy : copies_) copy.device.close();
  if (workspace_) workspace_->close();
}

const char* Staged::bring_back() {
  for (const Copy& copy : copies_) copy.bring_back();
  for (const Argument& argument : arguments_) {
    if (!argument.copy || argument.copy->device.intact()) continue;
    std::snprintf(damage_, sizeof damage_, "memory beside argument %d of the call was written", argument.number);
    return damage_;
  }
  return workspace_ && !workspace_->intact() ? "memory beside the workspace was written" : nullptr;
}

void run_staged(sbhal::Call& call) {
  const Staged staged(call);
  call.entry->plan(call.arguments, call.planned);  // again: what it keeps may hold addresses
  set_threads(call.launch.num_threads);
  call.entry->launch(call.arguments, call.planned, call.launch);
}

OpenMemory::OpenMemory() : call_(current) {
  if (call_) call_->open();
}
OpenMemory::~OpenMemory() {
  if (call_) call_->close();
}
const char* OpenMemory::finish() { return call_ ? call_->bring_back() : nullptr; }

}  // namespace simt
