#include "shared.h"

#include <sys/mman.h>

#include <new>

#include "pattern.h"

namespace simt {

constexpr bool kGuarded = !kAddressSanitizer && !kThreadSanitizer;  // they see for themselves what lies between arrays

static size_t padded(size_t bytes) { return (bytes + 15) / 16 * 16; }

// How many bytes behind an array are guarded: up to the next array.
size_t SharedMemory::behind(const SharedArray& declared) { return padded(declared.bytes) - declared.bytes + kGuard; }

static char* map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

SharedMemory::SharedMemory() : arena_(map(kArena + kTokens)) {}
SharedMemory::~SharedMemory() { munmap(arena_, kArena + kTokens); }

void SharedMemory::begin_block() {
  if (kThreadSanitizer) {  // new memory, written before the block starts: blocks share nothing
    char* const fresh = map(kArena + kTokens);
    munmap(arena_, kArena + kTokens);
    arena_ = fresh;
    std::memset(arena_, 0xff, kArena);
    begin_launch();
  }
  poison(arena_, kArena);
  for (size_t i = 0; i < count_; ++i) arrays_[i].filled = false;
}

void* SharedMemory::find(const SharedArray& declared) {
  for (size_t i = 0; i < count_; ++i)
    if (arrays_[i].declared == &declared) return arrays_[i].filled ? arrays_[i].memory : fill(arrays_[i]);
  return add(declared);
}

void* SharedMemory::add(const SharedArray& declared) {
  bytes_ += padded(declared.bytes);
  if (bytes_ > kCapacity || count_ == kMost) return nullptr;
  Array& array = arrays_[count_++];
  array = {&declared, arena_ + used_, false};
  if (kGuarded) {
    if (count_ == 1) guard(arena_, kGuard);
    guard(array.memory + declared.bytes, behind(declared));
  }
  used_ += padded(declared.bytes) + kGuard;
  return fill(array);
}

void* SharedMemory::fill(Array& array) {
  unpoison(array.memory, array.declared->bytes);
  if (!kThreadSanitizer) std::memset(array.memory, 0xff, array.declared->bytes);
  array.filled = true;
  return array.memory;
}

const SharedArray* SharedMemory::damaged(const char** side) const {
  if (!kGuarded) return nullptr;
  *side = "before";
  if (count_ && !intact(arena_, kGuard)) return arrays_[0].declared;
  *side = "behind";
  for (size_t i = 0; i < count_; ++i) {
    const SharedArray& declared = *arrays_[i].declared;
    if (!intact(arrays_[i].memory + declared.bytes, behind(declared))) return &declared;
  }
  return nullptr;
}

}  // namespace simt
