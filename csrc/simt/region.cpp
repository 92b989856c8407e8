#include "region.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "pattern.h"
#include "pool.h"
#include "sanitizers.h"

namespace simt {

static size_t page() {
  static const size_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

static char* map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

char* nowhere() {
  static char* const closed = map(page());
  return closed;
}

#if SBHAL_SIMT_ASAN

// AddressSanitizer guards what malloc returns; closing is poisoning.
struct Region::Mapping {
  void* memory = nullptr;
  ~Mapping() { std::free(memory); }
};

Region::Region(size_t bytes, size_t alignment, size_t remainder) : bytes_(bytes), mapping_(new Mapping) {
  if (posix_memalign(&mapping_->memory, alignment, remainder + bytes) != 0) throw std::bad_alloc();
  data_ = static_cast<char*>(mapping_->memory) + remainder;
  poison(mapping_->memory, remainder + bytes);
}
Region::~Region() { open(); }
void Region::open() { unpoison(data_, bytes_); }
void Region::close() noexcept { poison(data_, bytes_); }
void Region::guard() {}
bool Region::intact() const { return true; }

#else

// Closed pages between two that never open. They are kept for later regions: touching a page for the first time is
// what costs.
struct Region::Mapping {
  char* memory;
  size_t capacity;
  explicit Mapping(size_t bytes) : memory(map(bytes + 2 * page())), capacity(bytes) {}
  ~Mapping() { munmap(memory, capacity + 2 * page()); }
  char* end() const { return memory + page() + capacity; }
};

namespace {

template <class Mapping> class Kept {
 public:
  std::unique_ptr<Mapping> take(size_t capacity) {
    const std::lock_guard<std::mutex> lock(pool_lock());
    for (auto& kept : kept_)
      if (kept->capacity == capacity) {
        std::unique_ptr<Mapping> taken = std::move(kept);
        kept = std::move(kept_.back());
        kept_.pop_back();
        bytes_ -= capacity;
        return taken;
      }
    return std::make_unique<Mapping>(capacity);
  }
  void give_back(std::unique_ptr<Mapping> mapping) noexcept {
    const std::lock_guard<std::mutex> lock(pool_lock());
    const size_t capacity = mapping->capacity;
    if (bytes_ + capacity > kMostBytes) return;
    try {
      kept_.push_back(std::move(mapping));
      bytes_ += capacity;
    } catch (const std::bad_alloc&) {  // then it is not kept
    }
  }

 private:
  static constexpr size_t kMostBytes = size_t{128} << 20;
  std::vector<std::unique_ptr<Mapping> > kept_;
  size_t bytes_ = 0;
};

template <class Mapping> Kept<Mapping>& kept() {
  static auto* const all = new Kept<Mapping>;
  return *all;
}

}  // namespace

Region::Region(size_t bytes, size_t alignment, size_t remainder) : bytes_(bytes) {
  size_t capacity = page();
  while (capacity < bytes + alignment) capacity *= 2;
  mapping_ = kept<Mapping>().take(capacity);
  end_ = mapping_->end();
  data_ = end_ - bytes;
  data_ -= (reinterpret_cast<uintptr_t>(data_) - remainder) % alignment;
  first_ = data_ - reinterpret_cast<uintptr_t>(data_) % page();
}
Region::~Region() { kept<Mapping>().give_back(std::move(mapping_)); }
void Region::open() {
  if (mprotect(first_, end_ - first_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
}
void Region::close() noexcept { mprotect(first_, end_ - first_, PROT_NONE); }
void Region::guard() {
  simt::guard(first_, data_ - first_);
  simt::guard(data_ + bytes_, end_ - data_ - bytes_);
}
bool Region::intact() const {
  return simt::intact(first_, data_ - first_) && simt::intact(data_ + bytes_, end_ - data_ - bytes_);
}

#endif

}  // namespace simt
