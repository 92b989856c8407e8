// Spike codings: what spike_expand and spike_collapse share on every device.
#pragma once
#include "spike_rows.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// Rows that lie end to end are one.
inline Rows folded(const Rows& rows) {
  const int64_t all = rows.count * rows.width;
  return rows.stride == rows.width || rows.count == 1 ? Rows{1, all, all} : rows;
}

enum class Coding { binary, ternary, bitwise, bitwise_signed, twos_complement };

inline Coding coding_of(const char* given) {
  const char* const names[] = {"binary", "ternary", "bitwise", "bitwise_signed", "twos_complement"};
  for (int i = 0; i < 5; ++i)
    if (equal(given, names[i])) return static_cast<Coding>(i);
  fail(Error::value, "coding is '%s', expected 'binary', 'ternary', 'bitwise', 'bitwise_signed' or 'twos_complement'",
       given);
}

template <Coding coding> struct CodingConstant {
  static constexpr Coding value = coding;
};

// Calls f with a constant of the coding.
template <class F> void with_coding(Coding coding, const F& f) {
  switch (coding) {
    case Coding::binary: return f(CodingConstant<Coding::binary>());
    case Coding::ternary: return f(CodingConstant<Coding::ternary>());
    case Coding::bitwise: return f(CodingConstant<Coding::bitwise>());
    case Coding::bitwise_signed: return f(CodingConstant<Coding::bitwise_signed>());
    case Coding::twos_complement: return f(CodingConstant<Coding::twos_complement>());
  }
}
template <Coding coding> constexpr bool kUnary = coding == Coding::binary || coding == Coding::ternary;

inline bool is_msb_first(const char* bit_order) {
  if (!equal(bit_order, "msb") && !equal(bit_order, "lsb"))
    fail(Error::value, "bit_order is '%s', expected 'msb' or 'lsb'", bit_order);
  return equal(bit_order, "msb");
}

inline Rows count_rows(const Tensor& counts, const char* coding, int64_t timesteps, const char* bit_order) {
  check_dtype("counts", counts, DType::i16);
  const Rows rows = folded(rows_of("counts", counts));
  coding_of(coding);
  is_msb_first(bit_order);
  if (timesteps < 1 || timesteps > 32768)
    fail(Error::value, "timesteps is %lld, expected 1 to 32768", static_cast<long long>(timesteps));
  return rows;
}

// Of one time step.
inline Rows train_rows(const Tensor& trains, const char* coding, const char* bit_order) {
  check_dtype("trains", trains, DType::i8);
  if (trains.ndim < 1 || trains.shape[0] < 1) fail(Error::value, "trains has no time steps, expected [S, ...], S >= 1");
  const Rows rows = folded(rows_of("trains", trains, 1));
  coding_of(coding);
  is_msb_first(bit_order);
  return rows;
}

// What spike() is asked for at a time step. Beyond the largest count and the highest bit every further step is alike.
template <Coding coding> SBHAL_INLINE int32_t place_of(int64_t step, int64_t timesteps, bool msb_first) {
  const int64_t place = kUnary<coding> || !msb_first ? step : timesteps - 1 - step;
  return static_cast<int32_t>(min<int64_t>(place, kUnary<coding> ? 32768 : 16));
}

// What a count emits at step t of a unary coding, or where the bit of weight 2^t is due.
template <Coding coding> SBHAL_INLINE int8_t spike(int32_t c, int32_t t) {
  switch (coding) {
    case Coding::binary: return c > t;
    case Coding::ternary: return static_cast<int8_t>((c > t) - (c < -t));
    case Coding::bitwise_signed: {
      const int32_t bit = (c < 0 ? -c : c) >> t & 1;
      return static_cast<int8_t>(c < 0 ? -bit : bit);
    }
    default: return static_cast<int8_t>(c >> t & 1);
  }
}

// The count after one more spike, the first of which begins it. Weighted codings start at the highest bit; once a
// partial sum has left 17 bits no later bit brings it back, so it may stop growing at 2^17.
template <Coding coding> SBHAL_INLINE int32_t begin_count(int8_t spike) {
  return coding == Coding::twos_complement ? -spike : spike;
}
template <Coding coding> SBHAL_INLINE int32_t extend_count(int32_t count, int8_t spike) {
  const int32_t limit = 1 << 17;
  return kUnary<coding> ? count + spike : max(-limit, min(limit, 2 * count + spike));
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
