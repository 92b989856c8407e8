// Threads: OpenMP through the runtime torch has loaded. Tasks are fixed by shapes, never by the thread count,
// so any number of threads gives the same bits.
#pragma once
#include <omp.h>

#include <cstdint>

#include "tensor.h"

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

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
