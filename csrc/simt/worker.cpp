#include "worker.h"

#include <cstdio>
#include <new>

#include "schedule.h"

namespace simt {

__thread Position position __attribute__((tls_model("initial-exec")));
__thread Worker* worker __attribute__((tls_model("initial-exec")));

void* SharedArray::get() const { return worker->shared(*this); }

// ---- the scheduler

static uint64_t scrambled(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

unsigned Worker::random_bit(uint64_t bits) {
  random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
  for (unsigned skip = (random_ >> 33) % __builtin_popcountll(bits); skip; --skip) bits &= bits - 1;
  return __builtin_ctzll(bits);
}

void Worker::start(unsigned thread, char* stack) {
  waves_[thread / kWave].fresh &= ~bit(thread);
  stack_[thread] = stack;
}

// Nothing may be thrown on a fiber's stack: the launcher is told, and throws.
__attribute__((noinline)) void Worker::make_context(unsigned thread, unsigned from) {
  char* const stack = stacks_.take();
  if (!stack) {
    exhausted_ = true;
    if (from == kLauncher) throw std::bad_alloc();
    abandon();
  }
  start(thread, stack);
  context_[thread] = new_context(stacks_.top(stack_[thread]), fiber);
}

void Worker::abandon() {
  failed_ = true;
  resume(kLauncher, position.thread, true);
  __builtin_unreachable();
}

// ---- one block

void Worker::prepare(const Grid& grid, unsigned block) {
  grid_ = &grid;
  const unsigned waves = grid.threads / kWave;
  for (unsigned i = 0; i < waves; ++i) {
    Wave& wave = waves_[i];
    wave.ready = wave.fresh = kAllLanes;
    wave.waiting = wave.returned = 0;
    wave.phase = 0;
  }
  ready_waves_ = ~uint64_t{0} >> (64 - waves);
  arrived_ = returned_ = barriers_ = 0;
  failed_ = exhausted_ = false;
  random_ = grid.seed ? scrambled(grid.seed ^ scrambled(block)) | 1 : 0;
  position = {0, block, grid.threads, grid.blocks};
  worker = this;
  if (kThreadSanitizer) stacks_.give_back_all();
  shared_.begin_block();
  contexts_.begin(grid.threads);
}

bool Worker::run(const Grid& grid, unsigned block) {
  prepare(grid, block);
  resume(pick(0), kLauncher, false);
  if (failed_) {
    stacks_.give_back_all();
    if (exhausted_) throw std::bad_alloc();
    return false;
  }
  return !report_damage();
}

// The first function of every fiber: runs one thread, and those that can start in its place once it has ended.
void Worker::fiber() noexcept {
  Worker& w = *worker;
  w.contexts_.arrive(position.thread, true);
  for (;;) {
    w.grid_->body(w.grid_->data);
    const unsigned thread = position.thread, next = w.finish(thread);
    char* const stack = w.stack_[thread];
    if (kThreadSanitizer) w.resume(next, thread, true);  // a stack of its own for every thread
    if (next == kLauncher || !w.fresh(next)) {
      w.stacks_.give_back(stack);
      w.resume(next, thread, true);
    }
    w.start(next, stack);
    position.thread = next;
  }
}

// Takes a thread that has returned out of the block; says who runs next.
unsigned Worker::finish(unsigned thread) {
  publish(&ended_);
  Wave& wave = waves_[thread / kWave];
  stop(thread);
  wave.returned |= bit(thread);
  ++returned_;
  if (wave.waiting || arrived_) fail("a thread returned while others wait for it", nullptr, {nullptr, 0});
  return pick(thread / kWave);
}

void* Worker::shared(const SharedArray& declared) {
  if (void* memory = shared_.find(declared)) return memory;
  char what[128];
  std::snprintf(what, sizeof what, "%zu bytes of shared memory or more, devices give %zu", shared_.total(),
                SharedMemory::kCapacity);
  fail(what, "the declaration", declared.site);
}

}  // namespace simt
