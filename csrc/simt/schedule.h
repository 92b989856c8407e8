// The scheduler, inlined into every operation: a call more is a frame more to save and restore at each switch.
#pragma once
#include "switch.h"
#include "worker.h"

#define SBHAL_SIMT_INLINE inline __attribute__((always_inline))

namespace [[gnu::visibility("hidden")]] simt {

inline uint64_t bit(unsigned thread) { return uint64_t{1} << thread % kWave; }

// A thread that can run, of this wavefront if its order is fixed and it has one; the launcher if there is none.
SBHAL_SIMT_INLINE unsigned Worker::pick(unsigned wave) {
  if (!ready_waves_) return kLauncher;
  if (random_) {
    wave = random_bit(ready_waves_);
    return wave * kWave + random_bit(waves_[wave].ready);
  }
  if (!waves_[wave].ready) wave = __builtin_ctzll(ready_waves_);
  return wave * kWave + __builtin_ctzll(waves_[wave].ready);
}

SBHAL_SIMT_INLINE void Worker::stop(unsigned thread) {
  Wave& wave = waves_[thread / kWave];
  wave.ready &= ~bit(thread);
  if (!wave.ready) ready_waves_ &= ~(uint64_t{1} << thread / kWave);
}

SBHAL_SIMT_INLINE void Worker::resume(unsigned thread, unsigned from, bool for_ever) {
  if (thread != kLauncher) {
    if (__builtin_expect(fresh(thread), false)) make_context(thread, from);
    position.thread = thread;
  }
  contexts_.leave(from, for_ever, thread, stack_[thread], Stacks::kBytes);
  sbhal_simt_switch(&context_[from], context_[thread]);
  contexts_.arrive(from, false);
}

// Lets others run until the running thread is ready again.
SBHAL_SIMT_INLINE void Worker::wait() {
  const unsigned thread = position.thread;
  stop(thread);
  const unsigned next = pick(thread / kWave);
  if (next == kLauncher) fail("threads wait for ever", nullptr, {nullptr, 0});
  resume(next, thread, false);
}

// The last to arrive goes on, unless chance says otherwise.
SBHAL_SIMT_INLINE void Worker::give_way() {
  const unsigned thread = position.thread, next = random_ ? pick(0) : thread;
  if (next != thread) resume(next, thread, false);
}

// A wavefront operation: waits for all lanes, the last of which calls `last`. Returns the operation's phase.
template <class Last> SBHAL_SIMT_INLINE unsigned Worker::meet(Operation operation, Site site, Last last) {
  const unsigned thread = position.thread;
  Wave& wave = waves_[thread / kWave];
  if (wave.returned) fail("a wavefront operation after lanes have returned", name_of(operation), site);
  if (!wave.waiting) wave.operation = operation, wave.site = site;
  if (operation != wave.operation || !same(site, wave.site))
    fail("lanes of a wavefront are at different operations", name_of(operation), site);
  const unsigned phase = wave.phase;
  wave.waiting |= bit(thread);
  if (wave.waiting != kAllLanes) {
    wait();
  } else {
    last(wave);
    wave.waiting = 0;
    wave.phase ^= 1;
    wave.ready = kAllLanes;
    ready_waves_ |= uint64_t{1} << thread / kWave;
    give_way();
  }
  return phase;
}

SBHAL_SIMT_INLINE unsigned Worker::meet(Operation operation, Site site) {
  return meet(operation, site, [](Wave&) {});
}

}  // namespace simt
