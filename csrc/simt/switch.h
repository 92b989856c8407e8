// Switching between stacks, the one thing that C++ cannot say.
#pragma once

namespace [[gnu::visibility("hidden")]] simt {

// Saves the running context at *from and resumes `to`: one that was saved, or a new one.
extern "C" __attribute__((visibility("hidden"))) void sbhal_simt_switch(void** from, void* to);

// A context that will run `entry`, which never returns, on the stack that ends at `top`.
void* new_context(char* top, void (*entry)());

}  // namespace simt
