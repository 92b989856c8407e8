// One OS thread's part of a launch: it runs blocks, one at a time.
//
// A block is a set of fibers that a scheduler of bitmaps moves between: who waits steps out of its wavefront's `ready`,
// the last to arrive puts all back and goes on. So a barrier or a shuffle is one switch for each thread. A thread that
// has not started runs in place of one that has ended, so a kernel without barriers is a loop.
#pragma once
#include "sanitizers.h"
#include "shared.h"
#include "simt.h"
#include "stacks.h"

namespace [[gnu::visibility("hidden")]] simt {

constexpr unsigned kWave = SBHAL_SIMT_WAVE, kMostThreads = 1024, kMostWaves = kMostThreads / kWave;
constexpr uint64_t kAllLanes = ~uint64_t{0} >> (64 - kWave);

enum class Operation { wave_sync, converge, shuffle, ballot, mma };

// What a lane gives to a matrix product: operands on its stack, which waits.
struct Operands {
  const void *a, *b;
  float* c;
};

// Lanes are bits. Results of an operation are kept through the next one (`phase` tells them apart): before a lane can
// arrive at the one after that, all have read them.
struct Wave {
  uint64_t ready, fresh;  // who can run, and who of them has not started
  uint64_t waiting;       // who has arrived at the operation
  uint64_t returned;
  Site site;
  Operation operation;
  unsigned phase;
  uint64_t votes[2];
  alignas(16) unsigned char given[2][kWave][16];
  Operands operands[kWave];
};

struct Grid {
  const char* kernel;
  unsigned blocks, threads;
  void (*body)(const void*);
  const void* data;
  uint64_t seed;  // 0: a fixed order
};

class Worker {
 public:
  void begin_launch() { shared_.begin_launch(); }
  bool run(const Grid& grid, unsigned block);  // false if it failed, see error(); throws where memory is short
  void end_launch() {
    observe(&ended_);
    contexts_.end_launch();
  }
  const char* error() const { return error_; }

  void barrier(Site site);
  void* shared(const SharedArray& declared);

  unsigned meet(Operation operation, Site site);
  template <class Last> unsigned meet(Operation operation, Site site, Last last);
  Wave& wave() { return waves_[position.thread / kWave]; }
  void* token(unsigned phase) { return shared_.token(2 + position.thread / kWave * 2 + phase); }  // of the wavefront

  // Ends the block with an error: what is wrong, where the running thread is, and where the others are.
  [[noreturn]] __attribute__((cold, noinline)) void fail(const char* what, const char* place, Site site);

 private:
  static constexpr unsigned kLauncher = Contexts<kMostThreads>::kLauncher;

  static void fiber() noexcept;
  void prepare(const Grid& grid, unsigned block);
  unsigned finish(unsigned thread);
  bool fresh(unsigned thread) const { return waves_[thread / kWave].fresh >> thread % kWave & 1; }
  void start(unsigned thread, char* stack);
  void stop(unsigned thread);
  unsigned pick(unsigned wave);
  unsigned random_bit(uint64_t bits);
  void make_context(unsigned thread, unsigned from);
  void wait();
  void give_way();
  void resume(unsigned thread, unsigned from, bool for_ever);
  [[noreturn]] void abandon();
  __attribute__((format(printf, 2, 3))) void say(const char* format, ...);
  void say_site(Site site);
  void say_places();
  void begin_report();
  bool report_damage();
  struct Place {
    const char* name;
    Site site;
  };
  Place place(unsigned thread) const;

  const Grid* grid_ = nullptr;
  uint64_t random_ = 0;  // the generator's state, 0 where the order is fixed
  uint64_t ready_waves_ = 0;
  unsigned arrived_ = 0, returned_ = 0, barriers_ = 0;
  Site site_ = {nullptr, 0};  // of the barrier that threads wait at
  bool failed_ = false, exhausted_ = false;
  char ended_ = 0;  // what a thread's end publishes to the launch's
  Wave waves_[kMostWaves];
  void* context_[kMostThreads + 1];
  char* stack_[kMostThreads + 1];
  Contexts<kMostThreads> contexts_;
  SharedMemory shared_;
  Stacks stacks_;
  size_t said_ = 0;
  char error_[1024];
};

extern __thread Worker* worker __attribute__((tls_model("initial-exec")));

inline bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }
const char* name_of(Operation operation);

}  // namespace simt
