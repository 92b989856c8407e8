// What AddressSanitizer and ThreadSanitizer must be told about fibers; nothing where there is none.
//
// For ThreadSanitizer the kernels are compiled with -fsanitize=thread and the executor without it, but with
// SBHAL_SIMT_TSAN=1: every simulated thread becomes a thread of the detector's, switches order nothing, and only
// barriers, wave_sync() and the end of a launch do.
#pragma once
#include <cstddef>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SBHAL_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SBHAL_SIMT_ASAN 1
#endif
#endif
#ifndef SBHAL_SIMT_ASAN
#define SBHAL_SIMT_ASAN 0
#endif
#ifndef SBHAL_SIMT_TSAN
#define SBHAL_SIMT_TSAN 0
#endif
#if SBHAL_SIMT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace [[gnu::visibility("hidden")]] simt {

constexpr bool kAddressSanitizer = SBHAL_SIMT_ASAN, kThreadSanitizer = SBHAL_SIMT_TSAN;

inline void poison(const void* p, size_t bytes) {
#if SBHAL_SIMT_ASAN
  __asan_poison_memory_region(p, bytes);
#else
  (void)p, (void)bytes;
#endif
}
inline void unpoison(const void* p, size_t bytes) {
#if SBHAL_SIMT_ASAN
  __asan_unpoison_memory_region(p, bytes);
#else
  (void)p, (void)bytes;
#endif
}

// What happened before publish(token) happens before what follows observe(token).
inline void publish(void* token) {
#if SBHAL_SIMT_TSAN
  __tsan_release(token);
#else
  (void)token;
#endif
}
inline void observe(void* token) {
#if SBHAL_SIMT_TSAN
  __tsan_acquire(token);
#else
  (void)token;
#endif
}

// The contexts of one worker, `count` simulated threads and then the launching one, as the sanitizers see them.
template <unsigned count> class Contexts {
 public:
  static constexpr unsigned kLauncher = count;

#if SBHAL_SIMT_ASAN
  void begin(unsigned) {}
  void end_launch() {}
  void leave(unsigned from, bool for_ever, unsigned to, const void* stack, size_t bytes) {
    left_ = from;
    if (to == kLauncher) stack = launcher_stack_, bytes = launcher_bytes_;
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake_[from], stack, bytes);
  }
  void arrive(unsigned at, bool is_new) {
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(is_new ? nullptr : fake_[at], &stack, &bytes);
    if (left_ == kLauncher) launcher_stack_ = stack, launcher_bytes_ = bytes;
  }

 private:
  void* fake_[count + 1];
  const void* launcher_stack_;
  size_t launcher_bytes_;
  unsigned left_;
#elif SBHAL_SIMT_TSAN
  // A fiber is kept to the end of the launch: the detector gives a new one the name of one that has gone, and would
  // take what both did for one thread's work.
  void begin(unsigned threads) {
    if (made_.size() + threads > kMostKept) end_launch();
    for (unsigned i = 0; i < threads; ++i) made_.push_back(fiber_[i] = __tsan_create_fiber(0));
    fiber_[kLauncher] = __tsan_get_current_fiber();
  }
  void end_launch() {
    for (void* fiber : made_) __tsan_destroy_fiber(fiber);
    made_.clear();
  }
  void leave(unsigned, bool, unsigned to, const void*, size_t) {
    __tsan_switch_to_fiber(fiber_[to], __tsan_switch_to_fiber_no_sync);
  }
  void arrive(unsigned, bool) {}

 private:
  static constexpr size_t kMostKept = 2048;  // each takes 0.8 MB
  void* fiber_[count + 1];
  std::vector<void*> made_;
#else
  void begin(unsigned) {}
  void end_launch() {}
  void leave(unsigned, bool, unsigned, const void*, size_t) {}
  void arrive(unsigned, bool) {}
#endif
};

}  // namespace simt
