// Device memory apart from the host's: tensors are copied into it for a call, only kernels can touch it, and what they
// changed is copied back.
#pragma once
#include "core/arguments.h"

namespace [[gnu::visibility("hidden")]] simt {

class Staged;

// Runs a planned call on device memory.
void run_staged(sbhal::Call& call);

// Lets kernels touch the memory of the call that this OS thread is in, as long as a grid runs.
class OpenMemory {
 public:
  OpenMemory();
  ~OpenMemory();
  // Brings what the grid changed back to the host. Returns beside which argument it wrote, null if it did not.
  const char* finish();

 private:
  Staged* const call_;
};

}  // namespace simt
