// The bits of floats and the 16-bit types, for compilers that know _Float16. A vendor.h may include this after it has
// defined SBHAL_DEVICE, instead of conversions of its own.
#pragma once
#include <cstdint>

namespace sbhal {
namespace vendor {

template <class To, class From> SBHAL_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}
SBHAL_DEVICE float as_float(uint32_t bits) { return bit_cast<float>(bits); }
SBHAL_DEVICE uint32_t as_bits(float value) { return bit_cast<uint32_t>(value); }
SBHAL_DEVICE float f16_to_float(uint16_t bits) { return static_cast<float>(bit_cast<_Float16>(bits)); }
SBHAL_DEVICE uint16_t float_to_f16(float value) { return bit_cast<uint16_t>(static_cast<_Float16>(value)); }
SBHAL_DEVICE uint16_t float_to_bf16(float value) {
  const uint32_t bits = as_bits(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace vendor
}  // namespace sbhal
