// What an error says: the fault, where the thread is that met it, and where the others are.
#include <cstdarg>
#include <cstdio>

#include "worker.h"

namespace simt {

const char* name_of(Operation operation) {
  static const char* const names[] = {"wave_sync()", "the matrix product", "the shuffle", "the ballot",
                                      "the matrix product"};
  return names[static_cast<int>(operation)];
}

void Worker::say(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int length = std::vsnprintf(error_ + said_, sizeof error_ - said_, format, arguments);
  va_end(arguments);
  if (length > 0) said_ += length;
  if (said_ >= sizeof error_) said_ = sizeof error_ - 1;
}

void Worker::say_site(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  say("%s:%d", slash ? slash + 1 : site.file, site.line);
}

void Worker::begin_report() {
  said_ = 0;
  say("block %u of %s: ", position.block, grid_->kernel);
}

// Where a thread is that has stopped; nowhere if it can run.
Worker::Place Worker::place(unsigned thread) const {
  const Wave& wave = waves_[thread / kWave];
  const uint64_t bit = uint64_t{1} << thread % kWave;
  if (wave.returned & bit) return {"returned", {nullptr, 0}};
  if (wave.waiting & bit) return {name_of(wave.operation), wave.site};
  if (wave.ready & bit) return {nullptr, {nullptr, 0}};
  return {"__syncthreads()", site_};
}

void Worker::say_places() {
  const unsigned threads = grid_->threads;
  unsigned groups = 0;
  for (unsigned first = 0, end; first < threads; first = end) {
    const Place here = place(first);
    for (end = first + 1; end < threads; ++end) {
      const Place next = place(end);
      if (next.name != here.name || next.site.line != here.site.line || next.site.file != here.site.file) break;
    }
    if (!here.name) continue;
    if (++groups > 6) return say("; ...");
    if (end == first + 1)
      say("; thread %u ", first);
    else
      say("; threads %u to %u ", first, end - 1);
    if (!here.site.file)
      say("returned");
    else
      say("at %s of ", here.name), say_site(here.site);
  }
}

void Worker::fail(const char* what, const char* name, Site site) {
  const unsigned thread = position.thread;
  begin_report();
  say("%s", what);
  if (name) say(": thread %u at %s of ", thread, name), say_site(site);
  say_places();
  abandon();
}

bool Worker::report_damage() {
  const char* side;
  const SharedArray* damaged = shared_.damaged(&side);
  if (!damaged) return false;
  begin_report();
  say("memory %s the shared array of ", side);
  say_site(damaged->site);
  say(" was written");
  return true;
}

}  // namespace simt
