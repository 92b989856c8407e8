#include "stacks.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace simt {

Stacks::Stacks() : pitch_(kBytes + sysconf(_SC_PAGESIZE)), memory_(reserve()) {}
Stacks::~Stacks() { munmap(memory_, kCount * pitch_); }

char* Stacks::reserve() const {
  void* memory = mmap(nullptr, kCount * pitch_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

char* Stacks::make() {
  char* stack = memory_ + made_ * pitch_ + (pitch_ - kBytes);
  if (mprotect(stack, kBytes, PROT_READ | PROT_WRITE) != 0) return nullptr;
  ++made_;
  return stack;
}

void Stacks::give_back_all() {
  unpoison(memory_, made_ * pitch_);
  if (kThreadSanitizer) {  // new memory: the detector would take two blocks' use of one stack for a race
    char* const fresh = reserve();
    munmap(memory_, kCount * pitch_);
    memory_ = fresh;
    made_ = 0;
  }
  free_ = 0;
  for (int i = made_; i-- > 0;) spare_[free_++] = memory_ + i * pitch_ + (pitch_ - kBytes);
}

}  // namespace simt
