// The shared memory of one worker's blocks.
#pragma once
#include "sanitizers.h"
#include "simt.h"

namespace [[gnu::visibility("hidden")]] simt {

class SharedMemory {
 public:
  static constexpr size_t kCapacity = 48 * 1024;  // what every device gives a block without being asked

  SharedMemory();
  ~SharedMemory();
  void begin_launch() { count_ = 0, used_ = kGuard, bytes_ = 0; }
  void begin_block();

  // The array's memory in this block; null if the kernel declares too much, see total().
  void* find(const SharedArray& declared);
  size_t total() const { return bytes_; }

  // Addresses for publish() and observe() that no two blocks share.
  void* token(unsigned i) { return arena_ + kArena + 8 * i; }

  // The first array beside which the block wrote, else null.
  const SharedArray* damaged(const char** side) const;

 private:
  static constexpr size_t kGuard = 256, kMost = 64, kArena = kCapacity + kGuard * (kMost + 1), kTokens = 8 * 128;
  struct Array {
    const SharedArray* declared;
    char* memory;
    bool filled;  // in this block
  };
  static size_t behind(const SharedArray& declared);
  void* add(const SharedArray& declared);
  void* fill(Array& array);

  char* arena_;
  size_t count_ = 0, used_ = 0, bytes_ = 0;
  Array arrays_[kMost];
};

}  // namespace simt
