// Threads: OpenMP through the runtime torch has loaded. Tasks are fixed by shapes, never by the thread count,
// so any number of threads gives the same bits.
#pragma once
#include <omp.h>

#include <cstdint>

#include "scalar.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// Calls task(index, thread) for every index below count; thread < num_threads names a slice of the workspace.
template <class Task> void parallel_for(int64_t count, int num_threads, const Task& task) {
  if (num_threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
  for (int64_t i = 0; i < count; ++i) task(i, omp_get_thread_num());
}

// Items in pieces of `size`, the last may be short, and neighbouring pieces in tasks of up to `most`: small problems
// still fill the threads, large ones pay little for scheduling.
struct Tasks {
  int64_t items, stride, count;
  Tasks(int64_t items, int64_t size, int64_t most)
      : items(items),
        stride(size * max<int64_t>(1, min<int64_t>(most, ceil_div(items, size) / (16 * most)))),
        count(ceil_div(items, stride)) {}
  int64_t begin(int64_t task) const { return task * stride; }
  int64_t end(int64_t task) const { return min(items, begin(task + 1)); }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
