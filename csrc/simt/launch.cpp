// A launch: blocks over OS threads, each with a worker of its own.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "memory.h"
#include "pool.h"
#include "worker.h"

namespace simt {
namespace {

thread_local int wanted_threads = 0;
thread_local std::string error;  // its text lies elsewhere: memory for every thread is scarce where modules are loaded

__attribute__((format(printf, 1, 2))) void keep_error(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char text[1024];
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  error = text;
}

uint64_t number_from(const char* variable) {
  const char* text = std::getenv(variable);
  return text ? std::strtoull(text, nullptr, 10) : 0;
}
const uint64_t seed = number_from("SBHAL_SIMT_SEED"), most_blocks = number_from("SBHAL_SIMT_MAX_BLOCKS");

// Workers outlive launches and OS threads; there are as many as ever ran at once.
class Workers {
 public:
  std::unique_ptr<Worker> take() {
    const std::lock_guard<std::mutex> lock(pool_lock());
    if (idle_.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> taken = std::move(idle_.back());
    idle_.pop_back();
    return taken;
  }
  void give_back(std::unique_ptr<Worker> worker) {
    const std::lock_guard<std::mutex> lock(pool_lock());
    idle_.push_back(std::move(worker));
  }

 private:
  std::vector<std::unique_ptr<Worker>> idle_;
};
Workers& workers() {
  static auto* const all = new Workers;  // never destroyed: an OS thread may outlive this module's globals
  return *all;
}

// In which order blocks run: as they are numbered, or from a random one on in random steps.
class Order {
 public:
  explicit Order(unsigned blocks) : blocks_(blocks) {
    if (!seed) return;
    first_ = seed * 0x9e3779b97f4a7c15u >> 33;
    step_ = first_ % blocks + 1;
    while (std::gcd(step_, uint64_t{blocks}) != 1) ++step_;
  }
  unsigned block(unsigned i) const { return (first_ + i * step_) % blocks_; }

 private:
  uint64_t blocks_, first_ = 0, step_ = 1;
};

class Launcher {
 public:
  explicit Launcher(const Grid& grid)
      : grid_(grid), order_(grid.blocks), count_(most_blocks && most_blocks < grid.blocks ? most_blocks : grid.blocks) {
    failed_ = count_;
  }

  void run() {
    const unsigned wanted = wanted_threads ? wanted_threads : omp_get_max_threads();
    const unsigned team = kThreadSanitizer ? 1 : std::min(wanted, count_);
    chunk_ = std::max(1u, std::min(16u, count_ / (8 * team)));
    if (team == 1) {
      work();
    } else {
#pragma omp parallel num_threads(team)
      work();
    }
    if (thrown_) std::rethrow_exception(thrown_);
  }
  const char* error() const { return failed_ < count_ ? error_ : nullptr; }

 private:
  // An exception must not leave a parallel region: the first is kept for run(), and no more blocks start.
  void work() noexcept {
    try {
      run_blocks();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!thrown_) thrown_ = std::current_exception();
      failed_ = 0;
    }
  }

  // Every block before one that fails runs, so the error is the same for any number of OS threads.
  void run_blocks() {
    std::unique_ptr<Worker> mine = workers().take();
    mine->begin_launch();
    for (uint64_t i; (i = next_.fetch_add(chunk_)) < failed_;)
      for (const uint64_t end = std::min<uint64_t>(i + chunk_, count_); i < end && i < failed_; ++i)
        if (!mine->run(grid_, order_.block(i))) keep_failure(i, mine->error());
    mine->end_launch();
    workers().give_back(std::move(mine));
  }

  void keep_failure(uint64_t i, const char* text) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (i >= failed_) return;
    failed_ = i;
    std::memcpy(error_, text, sizeof error_);
  }

  const Grid& grid_;
  const Order order_;
  const unsigned count_;
  unsigned chunk_;
  std::atomic<uint64_t> next_{0}, failed_;  // the first in order that failed, else count_
  std::mutex mutex_;
  std::exception_ptr thrown_;
  char error_[1024];
};

}  // namespace

void set_threads(int threads) { wanted_threads = threads; }

void launch_grid(const char* kernel, unsigned blocks, unsigned threads, void (*body)(const void*), const void* data) {
  if (threads == 0 || threads > kMostThreads || threads % 64 != 0)
    return keep_error("%s has blocks of %u threads; they are multiples of 64, at most %u", kernel, threads,
                      kMostThreads);
  if (blocks == 0) return keep_error("%s has no blocks", kernel);
  const Grid grid = {kernel, blocks, threads, body, data, seed};
  Launcher launcher(grid);
  OpenMemory memory;
  launcher.run();
  const char* const damage = memory.finish();
  if (launcher.error())
    keep_error("%s", launcher.error());
  else if (damage)
    keep_error("%s", damage);
}

const char* last_error() {
  thread_local std::string last;
  last = std::move(error);
  error.clear();
  return last.empty() ? nullptr : last.c_str();
}

}  // namespace simt
