// What threads do together, but for matrix products.
#include <cstdio>

#include "schedule.h"

namespace simt {

SBHAL_SIMT_INLINE void Worker::barrier(Site site) {
  if (returned_) fail("a barrier after threads have returned", "__syncthreads()", site);
  if (!arrived_) site_ = site;
  if (!same(site, site_)) fail("threads of a block are at different barriers", "__syncthreads()", site);
  void* const token = shared_.token(barriers_ % 2);
  publish(token);
  if (++arrived_ < grid_->threads) {
    wait();
  } else {
    arrived_ = 0;
    ++barriers_;
    const unsigned waves = grid_->threads / kWave;
    for (unsigned i = 0; i < waves; ++i) waves_[i].ready = kAllLanes;
    ready_waves_ = ~uint64_t{0} >> (64 - waves);
    give_way();
  }
  observe(token);
}

void barrier(Site site) { worker->barrier(site); }

void wave_sync(Site site) {
  void* const token = worker->token(worker->wave().phase);
  publish(token);
  worker->meet(Operation::wave_sync, site);
  observe(token);
}

void converge(Site site) { worker->meet(Operation::converge, site); }

__attribute__((cold, noinline)) static void fail_lane(int lane, Site site) {
  char what[64];
  std::snprintf(what, sizeof what, "a shuffle reads lane %d of a wavefront of %u", lane, kWave);
  worker->fail(what, name_of(Operation::shuffle), site);
}

template <class T> SBHAL_SIMT_INLINE T exchanged(T value, int source, Site site) {
  if (static_cast<unsigned>(source) >= kWave) fail_lane(source, site);
  Wave& wave = worker->wave();
  __builtin_memcpy(wave.given[wave.phase][position.thread % kWave], &value, sizeof(T));
  const unsigned phase = worker->meet(Operation::shuffle, site);
  __builtin_memcpy(&value, wave.given[phase][source], sizeof(T));
  return value;
}

uint32_t exchange_word(uint32_t value, int source, Site site) { return exchanged(value, source, site); }

void exchange_large(const void* from, void* to, size_t bytes, int source, Site site) {
  if (bytes != 8 && bytes != 16)
    worker->fail("a shuffle of neither 4, 8 nor 16 bytes", name_of(Operation::shuffle), site);
  struct Value {
    uint64_t half[2];
  } value = {};
  for (size_t i = 0; i < bytes / 8; ++i) __builtin_memcpy(&value.half[i], static_cast<const char*>(from) + 8 * i, 8);
  value = exchanged(value, source, site);
  for (size_t i = 0; i < bytes / 8; ++i) __builtin_memcpy(static_cast<char*>(to) + 8 * i, &value.half[i], 8);
}

uint64_t ballot(bool yes, Site site) {
  Wave& wave = worker->wave();
  if (!wave.waiting) wave.votes[wave.phase] = 0;
  wave.votes[wave.phase] |= uint64_t{yes} << position.thread % kWave;
  return wave.votes[worker->meet(Operation::ballot, site)];
}

}  // namespace simt
