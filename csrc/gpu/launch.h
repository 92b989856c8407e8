// How host code starts a kernel: asynchronously, on the caller's stream.
#pragma once
#include "core/check.h"
#include "core/scalar.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kMostBlocks = 0x7fffffff, kMostThreads = 0xffffffff;  // of a grid, on every device

// Starts `blocks` blocks of `threads` threads; none is no launch. `name` is for error messages.
template <class... Parameters, class... Arguments> void launch_kernel(const char* name, void (*kernel)(Parameters...),
                                                                      int64_t blocks, int threads, const Launch& launch,
                                                                      const Arguments&... arguments) {
  if (blocks == 0) return;
  const int64_t most = min(kMostBlocks, kMostThreads / threads);
  if (blocks > most)
    fail(Error::unsupported, "%s would need %lld blocks, a device takes %lld", name, static_cast<long long>(blocks),
         static_cast<long long>(most));
  const auto grid = static_cast<unsigned>(blocks), block = static_cast<unsigned>(threads);
#ifdef SBHAL_SIMT
  (void)launch;  // simulated devices have one stream and finish each grid before they return
  ::simt::launch(name, grid, block, [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
  const auto stream = reinterpret_cast<vendor::Stream>(launch.stream);
  // clang-format off
  kernel<<<grid, block, 0, stream>>>(static_cast<Parameters>(arguments)...);
  // clang-format on
#endif
  if (const char* problem = vendor::last_launch_error()) fail(Error::device, "%s: %s", name, problem);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
