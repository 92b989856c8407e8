// Spike codings and the pieces of rows that spike_expand and spike_collapse work on.
#pragma once
#include "spike_encode.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kChunk = 4096;  // elements of a piece

// Rows that lie end to end are one.
Rows folded(const Rows& rows) {
  const int64_t all = rows.count * rows.width;
  return rows.stride == rows.width || rows.count == 1 ? Rows{1, all, all} : rows;
}

// Extremes of all pieces: the same whichever comes first.
void reach_down(int32_t* lowest, int32_t value) {
  int32_t now = __atomic_load_n(lowest, __ATOMIC_RELAXED);
  while (value < now && !__atomic_compare_exchange_n(lowest, &now, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}
void reach_up(int32_t* highest, int32_t value) {
  int32_t now = __atomic_load_n(highest, __ATOMIC_RELAXED);
  while (value > now && !__atomic_compare_exchange_n(highest, &now, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// Calls f(row, begin, end) for pieces of about kChunk elements that cover every row.
template <class F> void parallel_pieces(const Rows& rows, int num_threads, const F& f) {
  if (rows.count == 0 || rows.width == 0) return;
  const int64_t per_row = ceil_div(rows.width, kChunk), rows_at_once = max<int64_t>(1, kChunk / rows.width);
  parallel_for(ceil_div(rows.count, rows_at_once) * per_row, num_threads, [&](int64_t task, int) {
    const int64_t first = task / per_row * rows_at_once, begin = task % per_row * kChunk;
    for (int64_t row = first; row < min(rows.count, first + rows_at_once); ++row)
      f(row, begin, min(rows.width, begin + kChunk));
  });
}

enum class Coding { binary, ternary, bitwise, bitwise_signed, twos_complement };

Coding coding_of(const char* given) {
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

bool is_msb_first(const char* bit_order) {
  if (!equal(bit_order, "msb") && !equal(bit_order, "lsb"))
    fail(Error::value, "bit_order is '%s', expected 'msb' or 'lsb'", bit_order);
  return equal(bit_order, "msb");
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
