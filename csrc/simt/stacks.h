// The stacks of one worker's fibers: mapped when first needed, kept for ever, each above a page that none may touch.
#pragma once
#include <cstddef>

#include "sanitizers.h"

namespace [[gnu::visibility("hidden")]] simt {

class Stacks {
 public:
  static constexpr int kCount = 1024;
  static constexpr size_t kBytes = (kAddressSanitizer ? 256 : 64) * 1024;

  Stacks();
  ~Stacks();
  char* take() { return free_ ? spare_[--free_] : make(); }  // its lowest byte, null if there is no memory
  void give_back(char* stack) { spare_[free_++] = stack; }
  void give_back_all();  // also those of fibers that will never end

  // Where a fiber's first frame goes. Tops are staggered: at equal offsets they would share a few cache sets.
  char* top(char* stack) const { return stack + kBytes - 64 - (stack - memory_) / pitch_ % 32 * 192; }

 private:
  char* make();
  char* reserve() const;

  size_t pitch_;
  char* memory_;
  int made_ = 0, free_ = 0;
  char* spare_[kCount];
};

}  // namespace simt
