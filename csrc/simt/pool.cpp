#include "pool.h"

#include <pthread.h>

namespace simt {

static std::mutex lock;
[[maybe_unused]] static const int watch_forks =
    pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });

std::mutex& pool_lock() { return lock; }

}  // namespace simt
