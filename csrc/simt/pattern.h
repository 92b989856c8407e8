// What memory holds that nobody may write: NaN in every floating-point type, and unlikely as an integer.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>

namespace [[gnu::visibility("hidden")]] simt {

struct Pattern {
  unsigned char bytes[512];
  constexpr Pattern() : bytes() {
    for (int i = 0; i < 512; ++i) bytes[i] = i % 2 ? 0xff : 0xf7;
  }
};
constexpr Pattern kPattern;

inline void guard(char* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof kPattern)
    std::memcpy(p + i, kPattern.bytes, std::min(bytes - i, sizeof kPattern));
}
inline bool intact(const char* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof kPattern)
    if (std::memcmp(p + i, kPattern.bytes, std::min(bytes - i, sizeof kPattern)) != 0) return false;
  return true;
}

}  // namespace simt
