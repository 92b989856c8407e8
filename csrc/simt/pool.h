// What launches leave to later ones, workers and memory, is under one lock.
#pragma once
#include <mutex>

namespace [[gnu::visibility("hidden")]] simt {

// A fork waits for it, so that the child finds it free.
std::mutex& pool_lock();

}  // namespace simt
