// A saved context is a stack pointer; what the calling convention asks a function to preserve lies above it. The
// floating-point control words are left alone: no kernel changes them.
#include "switch.h"

#include <cstdint>

#if defined(__x86_64__)

asm(R"(
  .text
  .p2align 4
  .globl sbhal_simt_switch
  .hidden sbhal_simt_switch
  .type sbhal_simt_switch, @function
sbhal_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size sbhal_simt_switch, .-sbhal_simt_switch
)");

namespace simt {

void* new_context(char* top, void (*entry)()) {
  auto** slot = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
  *--slot = nullptr;  // where a called function finds its return address
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--slot = nullptr;
  return slot;
}

}  // namespace simt

#elif defined(__aarch64__)

asm(R"(
  .text
  .p2align 4
  .globl sbhal_simt_switch
  .hidden sbhal_simt_switch
  .type sbhal_simt_switch, %function
sbhal_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size sbhal_simt_switch, .-sbhal_simt_switch
)");

namespace simt {

void* new_context(char* top, void (*entry)()) {
  auto** slot = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - 20;
  for (int i = 0; i < 20; ++i) slot[i] = nullptr;
  slot[11] = reinterpret_cast<void*>(entry);  // x30, where the switch returns to
  return slot;
}

}  // namespace simt

#else
#error "simulated devices run on x86-64 and aarch64: write the switch for this processor"
#endif
