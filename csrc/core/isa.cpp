#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "registry.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sbhal {
namespace {

enum Word { eax, ebx, ecx, edx };

// What a processor says of itself under cpuid: the name is that of /proc/cpuinfo.
struct Feature {
  const char* name;
  unsigned leaf, subleaf;
  Word word;
  int bit;
};

// What the compiler may use with the flags of cmake/kernels.cmake, beyond the level below.
struct Level {
  const char* name;
  uint64_t registers;  // that the system must save for a process, as bits of xcr0
  std::vector<Feature> features;
};

constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;
constexpr unsigned kExtended = 0x80000001;

const std::vector<Level>& levels() {
  static const auto* const all = new std::vector<Level>{
      {"portable", 0, {}},
      {"avx2",
       kYmm,
       {{"pni", 1, 0, ecx, 0},
        {"ssse3", 1, 0, ecx, 9},
        {"fma", 1, 0, ecx, 12},
        {"cx16", 1, 0, ecx, 13},
        {"sse4_1", 1, 0, ecx, 19},
        {"sse4_2", 1, 0, ecx, 20},
        {"movbe", 1, 0, ecx, 22},
        {"popcnt", 1, 0, ecx, 23},
        {"xsave", 1, 0, ecx, 26},
        {"avx", 1, 0, ecx, 28},
        {"f16c", 1, 0, ecx, 29},
        {"bmi1", 7, 0, ebx, 3},
        {"avx2", 7, 0, ebx, 5},
        {"bmi2", 7, 0, ebx, 8},
        {"lahf_lm", kExtended, 0, ecx, 0},
        {"abm", kExtended, 0, ecx, 5}}},
      {"avx512",
       kZmm,
       {{"avx512f", 7, 0, ebx, 16},
        {"avx512dq", 7, 0, ebx, 17},
        {"avx512cd", 7, 0, ebx, 28},
        {"avx512bw", 7, 0, ebx, 30},
        {"avx512vl", 7, 0, ebx, 31}}},
      {"avx512_bf16", kZmm, {{"avx512_vnni", 7, 0, ecx, 11}, {"avx512_bf16", 7, 1, eax, 5}}},
  };
  return *all;
}

#if defined(__x86_64__)

bool has(const Feature& f) {
  unsigned words[4] = {0, 0, 0, 0};
  if (!__get_cpuid_count(f.leaf, f.subleaf, &words[eax], &words[ebx], &words[ecx], &words[edx])) return false;
  return words[f.word] >> f.bit & 1;
}

uint64_t saved_registers() {
  if (!has({"osxsave", 1, 0, ecx, 27})) return 0;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

#else

bool has(const Feature&) { return false; }
uint64_t saved_registers() { return 0; }

#endif

bool runs(const Level& level) {
  if ((saved_registers() & level.registers) != level.registers) return false;
  for (const Feature& f : level.features)
    if (!has(f)) return false;
  return true;
}

}  // namespace

const char* isa_name(int isa) { return levels()[isa].name; }

int detected_isa() {
  int isa = 0;
  while (isa + 1 < static_cast<int>(levels().size()) && runs(levels()[isa + 1])) ++isa;
  return isa;
}

int chosen_isa() {
  const char* forced = std::getenv("SBHAL_CPU_ISA");
  const int best = detected_isa();
  if (!forced || !*forced) return best;
  for (size_t i = 0; i < levels().size(); ++i)
    if (std::strcmp(forced, isa_name(i)) == 0) {
      if (static_cast<int>(i) > best)
        throw std::runtime_error(std::string("SBHAL_CPU_ISA=") + forced + ": this processor stops at " +
                                 isa_name(best));
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
