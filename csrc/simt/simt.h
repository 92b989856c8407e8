// A GPU on a CPU: runs kernels written for a GPU with every simulated thread as a fiber, several OS threads over
// blocks.
//
// It is harsher than any GPU: shared memory starts as NaNs between guard zones, lanes run in any order, and barriers or
// wavefront operations that not all threads reach are errors that name file and line. Vendor headers of simulated
// devices include this file; kernels never do.
//
// Two variables, read once when the module is loaded:
//   SBHAL_SIMT_SEED=n        threads, wavefronts and blocks run in a random order that n chooses; 0: in a fixed order
//   SBHAL_SIMT_MAX_BLOCKS=n  at most n blocks of every launch run, for checkers that are too slow for more
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef SBHAL_SIMT_WAVE
#error "simulated devices are compiled with SBHAL_SIMT_WAVE, the wavefront's size: 32 or 64"
#endif

#define SBHAL_SIMT 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace [[gnu::visibility("hidden")]] simt {  // each module has an executor of its own

struct Index {
  unsigned x, y, z;
};
struct Site {
  const char* file;
  int line;
};
inline Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// Where the running simulated thread is. The executor writes it before it resumes a thread.
struct Position {
  unsigned thread, block, threads, blocks;
};
extern __thread Position position __attribute__((tls_model("initial-exec")));

inline Index thread_index() { return {position.thread, 0, 0}; }
inline Index block_index() { return {position.block, 0, 0}; }
inline Index block_size() { return {position.threads, 1, 1}; }
inline Index grid_size() { return {position.blocks, 1, 1}; }

void barrier(Site);    // all threads of the block
void wave_sync(Site);  // all lanes of the wavefront; orders their memory
void converge(Site);   // all lanes of the wavefront; orders nothing

// What the wavefront exchanges: each lane gives a value of 4, 8 or 16 bytes, and gets the one of lane `source`.
uint32_t exchange_word(uint32_t value, int source, Site);
void exchange_large(const void* from, void* to, size_t bytes, int source, Site);
inline void exchange(const void* from, void* to, size_t bytes, int source, Site site) {
  if (bytes != 4) return exchange_large(from, to, bytes, source, site);
  uint32_t value;
  __builtin_memcpy(&value, from, 4);
  value = exchange_word(value, source, site);
  __builtin_memcpy(to, &value, 4);
}
uint64_t ballot(bool yes, Site);

// One wavefront's matrix products with the lane layouts of real units: c += a b.
// 16 x 8 x 16: lane l holds rows l/4 and l/4+8, columns 2(l%4) and the next of a (and 8 on), the same k of column l/4
// of b.
void mma_16x8x16(bool brain_float, const uint32_t a[4], const uint32_t b[2], float c[4], Site);
// 16 x 16 x 16: lane l holds k = 4(l/16)..+3 of row l%16 of a and of column l%16 of b, and rows 4(l/16)..+3 of column
// l%16 of c.
void mma_16x16x16(bool brain_float, const uint16_t a[4], const uint16_t b[4], float c[4], Site);

// One shared array of a kernel: the same memory for all threads of a block, found by its declaration.
class SharedArray {
 public:
  constexpr SharedArray(size_t size, const char* file, int line) : bytes(size), site{file, line} {}
  void* get() const;

  const size_t bytes;
  const Site site;
};

// How many OS threads the launches of the calling thread use; 0: as many as OpenMP would.
void set_threads(int threads);

// Runs a grid to its end. Errors (divergence, deadlock, a damaged guard zone, too much shared memory) are kept for
// last_error(). `body` is called once for every simulated thread.
void launch_grid(const char* kernel, unsigned blocks, unsigned threads, void (*body)(const void*), const void* data);
template <class Body> void launch(const char* kernel, unsigned blocks, unsigned threads, const Body& body) {
  launch_grid(kernel, blocks, threads, [](const void* data) { (*static_cast<const Body*>(data))(); }, &body);
}
const char* last_error();  // of the calling thread, null if there was none; forgets it

}  // namespace simt

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())
#define __syncthreads() ::simt::barrier({__FILE__, __LINE__})

#include "intrinsics.h"
