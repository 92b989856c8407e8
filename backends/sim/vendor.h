// The simulated device's side of the dialect: csrc/simt under the names that csrc/gpu asks of a vendor.
//
// Its wavefront of 32 has the matrix unit of pairs of k unless it is built without; that of 64 has none, so that the
// products in float32 which devices without matrix units run are tested too.
#pragma once
#include <cmath>

#define SBHAL_WAVE SBHAL_SIMT_WAVE
#define SBHAL_DEVICE inline
#if SBHAL_SIMT_WAVE == 32 && !defined(SBHAL_SIM_WITHOUT_MATRIX_UNITS)
#define SBHAL_MMA_16X8X16 1
#endif

#include "gpu/float16.h"
#include "gpu/properties.h"
#include "simt/simt.h"

namespace sbhal {
namespace vendor {

template <class T> T shuffle(T v, int from, simt::Site site) {
  T got;
  simt::exchange(&v, &got, sizeof(T), from, site);
  return got;
}
inline int lane() { return static_cast<int>(threadIdx.x) % SBHAL_WAVE; }
template <class T> T shuffle_xor(T v, int mask, simt::Site site) { return shuffle(v, lane() ^ mask, site); }
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
