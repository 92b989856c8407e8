// The simulated device's side of the dialect: csrc/simt under the names that csrc/gpu asks of a vendor.
//
// Its wavefront of 32 has the matrix unit of pairs of k; that of 64 has none, so that the products in float32 which
// devices without matrix units run are tested too.
#pragma once
#include <cmath>

#include "simt/simt.h"

#define SBHAL_WAVE SBHAL_SIMT_WAVE
#if SBHAL_SIMT_WAVE == 32
#define SBHAL_MMA_16X8X16 1
#endif

namespace sbhal {
namespace vendor {

inline float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
inline float f16_to_float(uint16_t bits) {
  _Float16 value;
  __builtin_memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}
inline uint16_t float_to_f16(float value) {
  const _Float16 rounded = static_cast<_Float16>(value);
  uint16_t bits;
  __builtin_memcpy(&bits, &rounded, 2);
  return bits;
}
inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = as_bits(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T> T shuffle(T v, int from, simt::Site site) {
  T got;
  simt::exchange(&v, &got, sizeof(T), from, site);
  return got;
}
inline int lane() { return static_cast<int>(threadIdx.x) % SBHAL_WAVE; }
template <class T> T shuffle_xor(T v, int mask, simt::Site site) { return shuffle(v, lane() ^ mask, site); }
template <class T> T shuffle_up(T v, int by, simt::Site site) {
  return shuffle(v, lane() < by ? lane() : lane() - by, site);
}
inline uint64_t ballot(bool yes, simt::Site site) { return simt::ballot(yes, site); }
inline void wave_sync(simt::Site site) { simt::wave_sync(site); }

template <bool brain_float>
void mma_16x8x16(const uint32_t (&a)[4], const uint32_t (&b)[2], float* c, simt::Site site) {
  simt::mma_16x8x16(brain_float, a, b, c, site);
}

inline const char* last_launch_error() { return simt::last_error(); }

inline const char* count_devices(int* count) {
  *count = 1;
  return nullptr;
}

struct Device {
  char name[64];
  int wave, shared_memory, multiprocessors, major, minor;
  int64_t memory;
};
inline const char* describe_device(int, Device* out) {
  *out = {"GPU simulated on a CPU", SBHAL_WAVE, 48 * 1024, 1, 0, 0, 0};
  return nullptr;
}
inline const char* check_kernel(const void*) { return nullptr; }
inline const char* driver_version(int* version) {
  *version = 0;
  return nullptr;
}

}  // namespace vendor
}  // namespace sbhal
