// Panels of weights for the CPU kernels of spike_linear: kColumns outputs by kDepth codes, so that one instruction
// multiplies neighbouring codes of as many outputs as it has lanes, and sums them in integers.
//
// A unit is one 32-bit lane of it: four bytes where the processor multiplies bytes (VNNI) and weights are bytes, else
// two 16-bit codes, into which bytes are widened. A panel is packed for every block of rows, anew in every call: next
// to reading weights from memory once, or multiplying them by many rows, it costs little.
#pragma once
#include "core/matmul.h"
#include "spike_linear.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// VNNI comes with the level avx512_bf16. A level of its own would compile every kernel once more for the processors in
// between, which without it lose half of their speed on many rows, and none on one.
#if defined(__AVX512VNNI__)
constexpr bool kBytesMultiply = true;
#else
constexpr bool kBytesMultiply = false;
#endif

constexpr int64_t kColumns = 2 * kLanes;
constexpr int64_t kDepth = 512;  // codes of a row in a panel: bytes of it fit the first-level cache beside the counts
constexpr int64_t kPanelGroups = kDepth / kLeastGroup;
constexpr int32_t kWide = 512;  // sums of codes below it, times any counts, fit 32 bits over a group

typedef int16_t vs __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vw __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vw_unaligned __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
typedef int8_t vb __attribute__((vector_size(2 * kLanes)));
typedef int8_t vb_unaligned __attribute__((vector_size(2 * kLanes), aligned(1), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));

SBHAL_INLINE vi load(const int32_t* p) { return *reinterpret_cast<const vi_unaligned*>(p); }
SBHAL_INLINE void store(int32_t* p, vi v) { *reinterpret_cast<vi_unaligned*>(p) = v; }
SBHAL_INLINE vi set(int32_t x) { return x - vi{}; }
template <class T> SBHAL_INLINE int32_t unit_at(const T* p) {
  int32_t unit;
  __builtin_memcpy(&unit, p, sizeof(unit));
  return unit;
}

// sum + a0 * b0 + a1 * b1 of the 16-bit halves of each lane.
SBHAL_INLINE vi add_pairs(vi sum, vi a, vi b) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<vi>(
      _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX512BW__)
  return sum + reinterpret_cast<vi>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return sum + reinterpret_cast<vi>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return sum + reinterpret_cast<vi>(__builtin_ia32_pmaddwd128(reinterpret_cast<vs>(a), reinterpret_cast<vs>(b)));
#else
  return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

#if defined(__AVX512VNNI__)
// sum + the products of the four unsigned bytes of each lane of a with the signed ones of b.
SBHAL_INLINE vi add_bytes(vi sum, vi a, vi b) {
  return reinterpret_cast<vi>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
// Bytes 2 * half and 2 * half + 1 of each lane as 16-bit codes.
template <int half> SBHAL_INLINE vi widen(vi bytes) {
  constexpr int kPlaces = half ? 0x03800280 : 0x01800080, kLane = 0x04000400;  // 0x80 gives a zero
  const __m512i places = _mm512_set4_epi32(kPlaces + 3 * kLane, kPlaces + 2 * kLane, kPlaces + kLane, kPlaces);
  const __m512i high = _mm512_shuffle_epi8(reinterpret_cast<__m512i>(bytes), places);
  return reinterpret_cast<vi>(_mm512_srai_epi16(high, 8));
}
#else
template <class V> V add_bytes(V sum, V a, V b);  // neither is instantiated
template <int half> vi widen(vi bytes);
#endif

// kLanes units of a row of codes.
template <int codes> SBHAL_INLINE vi load_units(const int8_t* p) {
  if (codes == 4) return *reinterpret_cast<const vi_unaligned*>(p);
  return reinterpret_cast<vi>(__builtin_convertvector(*reinterpret_cast<const vb_unaligned*>(p), vs));
}
template <int codes> SBHAL_INLINE vi load_units(const int16_t* p) { return *reinterpret_cast<const vi_unaligned*>(p); }

SBHAL_INLINE vi magnitude_bits(vi pairs) {
  const vs code = reinterpret_cast<vs>(pairs), sign = code >> 15;
  return reinterpret_cast<vi>(reinterpret_cast<vw>(code ^ sign) - reinterpret_cast<vw>(sign));
}

SBHAL_INLINE bool any_bits(vi v) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(v), reinterpret_cast<__m512i>(v));
#else
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= v[i];
  return any;
#endif
}

// Panel for the L1 cache, on a task's stack:
//
//   units   [kDepth / kCodes][kColumns] row u: codes u * kCodes .. of each output, two vectors side by side
//   scales  [groups][kColumns], and start the same where bytes are multiplied
//   wide    [groups]
//
// pack() takes the same vector of codes of kLanes outputs, transposes that square in registers and stores its columns
// as halves of rows of units. Rows past the depth at hand are never read.
template <class Code> struct Panel {
  static constexpr bool kBytes = kBytesMultiply && sizeof(Code) == 1;
  static constexpr int kCodes = kBytes ? 4 : 2;  // of a unit
  static constexpr int64_t kSpan = kLanes * kCodes;
  static constexpr int64_t kAhead = 2048 / sizeof(Code);

  alignas(64) int32_t units[kDepth / kCodes * kColumns];
  alignas(64) float scales[kPanelGroups * kColumns];
  alignas(64) int32_t start[kBytes ? kPanelGroups * kColumns : kColumns];  // -128 times the sum of a group's codes
  bool wide[kPanelGroups];  // whether a group's sum may need more than 32 bits

  // Outputs [column, column + kColumns), codes [first, first + depth). What lies past the last output repeats it.
  void pack(const Tensor& weight, const Tensor& scale, const Layer& layer, int64_t column, int64_t first,
            int64_t depth) {
    const int64_t groups = depth / layer.group;
    for (int64_t g = 0; g < groups; ++g) wide[g] = false;
    for (int64_t half = 0; half < kColumns; half += kLanes) {
      const Code* row[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t n = min(column + half + i, layer.outputs - 1);
        row[i] = static_cast<const Code*>(weight.data) + n * weight.stride[0] + first;
        const float* s = static_cast<const float*>(scale.data) + n * scale.stride[0] + first / layer.group;
        for (int64_t g = 0; g < groups; ++g) scales[g * kColumns + half + i] = s[g];
      }
      for (int64_t k = 0; k < depth; k += kSpan) {
        const int64_t next = first + k + kAhead < layer.width ? 0 : kColumns * weight.stride[0] - layer.width;
        pack_square(row, k, depth - k, next + kAhead, layer.group, units + half);
      }
    }
    if constexpr (kBytes) sum_groups(groups, layer.group / kCodes);
  }

 private:
  // kLanes units of as many rows. Rows lie too far apart for the processor to follow so many of them by itself: what
  // comes `ahead` of each is asked for, in this panel or in the next.
  void pack_square(const Code* const (&row)[kLanes], int64_t k, int64_t left, int64_t ahead, int64_t group,
                   int32_t* out) {
    vf square[kLanes];
    vi bits = {};
    for (int i = 0; i < kLanes; ++i) {
      vi codes;
      if (left >= kSpan) {
        prefetch_l2(row[i] + k + ahead);
        codes = load_units<kCodes>(row[i] + k);
      } else {
        Code last[kSpan] = {};
        for (int64_t j = 0; j < left; ++j) last[j] = row[i][k + j];
        codes = load_units<kCodes>(last);
      }
      if (sizeof(Code) > 1) bits |= magnitude_bits(codes);
      square[i] = bits_as_float(codes);
    }
    if (sizeof(Code) > 1) {
      const vs beyond = reinterpret_cast<vs>(bits) & static_cast<int16_t>(-kWide);
      if (any_bits(reinterpret_cast<vi>(beyond))) wide[k / group] = true;
    }
    transpose(square);
    const int64_t valid = min<int64_t>(kLanes, left / kCodes);
    for (int64_t i = 0; i < valid; ++i) store(out + (k / kCodes + i) * kColumns, float_as_bits(square[i]));
  }

  void sum_groups(int64_t groups, int64_t units_each) {
    const vi weight = set(static_cast<int32_t>(0x80808080u));
    for (int64_t g = 0; g < groups; ++g) {
      const int32_t* unit = units + g * units_each * kColumns;
      vi even[2] = {}, odd[2] = {};
      for (int64_t u = 0; u < units_each; u += 2, unit += 2 * kColumns)
        for (int h = 0; h < 2; ++h) {
          even[h] = add_bytes(even[h], weight, load(unit + h * kLanes));
          odd[h] = add_bytes(odd[h], weight, load(unit + kColumns + h * kLanes));
        }
      for (int h = 0; h < 2; ++h) store(start + g * kColumns + h * kLanes, -(even[h] + odd[h]));
    }
  }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
