#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "registry.h"

namespace sbhal {

static const char* const kIsaNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};
constexpr int kIsaCount = 4;

const char* isa_name(int isa) { return kIsaNames[isa]; }

int detected_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd");
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("bmi");
  if (v4 && v3 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) return 3;
  if (v4 && v3) return 2;
  if (v3) return 1;
#endif
  return 0;
}

int chosen_isa() {
  const char* forced = std::getenv("SBHAL_CPU_ISA");
  if (!forced || !*forced) return detected_isa();
  for (int i = 0; i < kIsaCount; ++i)
    if (std::strcmp(forced, kIsaNames[i]) == 0) {
      if (i > detected_isa())
        throw std::runtime_error(std::string("SBHAL_CPU_ISA=") + forced + ": this processor stops at " +
                                 kIsaNames[detected_isa()]);
      return i;
    }
  throw std::runtime_error(std::string("SBHAL_CPU_ISA=") + forced +
                           ": accepted are portable, avx2, avx512 and avx512_bf16");
}

std::map<std::string, const KernelEntry*> best_kernels(int isa) {
  std::map<std::string, const KernelEntry*> best;
  for (auto p = __start_sbhal_kernels; p != __stop_sbhal_kernels; ++p) {
    const KernelEntry* entry = *p;
    auto found = best.find(entry->op);
    if (found != best.end() && found->second->isa == entry->isa) refuse_second_kernel(entry->op);
    if (entry->isa <= isa && (found == best.end() || found->second->isa < entry->isa)) best[entry->op] = entry;
  }
  return best;
}

}  // namespace sbhal
