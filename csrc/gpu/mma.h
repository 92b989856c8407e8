// Matrix units: one wavefront multiplies 16 x 16 tiles and sums in float32.
//
// The tile has three bodies. The vendor header says which its device has: SBHAL_MMA_16X16X16 (four consecutive k a
// lane), SBHAL_MMA_16X8X16 (two halves, pairs of k a lane), or neither: products in float32, which float32 inputs use
// on every device.
#pragma once
#include "gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

enum class Stored { rows, columns };  // element (i, j) of an operand at p[i * pitch + j], or at p[j * pitch + i]

template <Stored stored> constexpr Stored kTransposed = stored == Stored::rows ? Stored::columns : Stored::rows;

template <class T> constexpr bool kBrainFloat = false;
template <> constexpr bool kBrainFloat<bf16> = true;

template <Stored stored, class T> SBHAL_INLINE T operand(const T* p, int pitch, int i, int j) {
  return stored == Stored::rows ? p[i * pitch + j] : p[j * pitch + i];
}

// The bits of operand (i, j), (i, j + 1), ... (i, j + count - 1); one read where they are neighbours.
template <Stored stored, int count, class T>
SBHAL_INLINE void operands(const T* p, int pitch, int i, int j, uint16_t (&bits)[count]) {
  if (stored == Stored::rows) {
    __builtin_memcpy(bits, __builtin_assume_aligned(p + i * pitch + j, 2 * count), sizeof(bits));
  } else {
#pragma unroll
    for (int e = 0; e < count; ++e) bits[e] = p[(j + e) * pitch + i].bits;
  }
}

// A unit says which of a tile's elements a lane holds: element e is at (row(e), column(e)). They lie in kHeldRows rows:
// e in the lane's row held(e), of which element(h) is one; kAcross neighbouring lanes hold the rest of the same rows.
#if defined(SBHAL_MMA_16X16X16)
template <class T> struct MatrixUnit {
  static constexpr int kElements = 4, kHeldRows = 4, kAcross = 16;
  SBHAL_INLINE static constexpr int held(int e) { return e; }
  SBHAL_INLINE static constexpr int element(int h) { return h; }
  SBHAL_INLINE static int row(int e) { return 4 * (lane() / 16) + e; }
  SBHAL_INLINE static int column(int) { return lane() % 16; }

  template <Stored a_stored, Stored b_stored>
  SBHAL_INLINE static void multiply(const T* a, int a_pitch, const T* b, int b_pitch, float (&c)[4] SBHAL_SITE) {
    uint16_t a4[4], b4[4];
    operands<a_stored>(a, a_pitch, lane() % 16, 4 * (lane() / 16), a4);
    operands<kTransposed<b_stored>>(b, b_pitch, lane() % 16, 4 * (lane() / 16), b4);
    vendor::mma_16x16x16<kBrainFloat<T>>(a4, b4, c SBHAL_HERE);
  }
};
#elif defined(SBHAL_MMA_16X8X16)
template <class T> struct MatrixUnit {
  static constexpr int kElements = 8, kHeldRows = 2, kAcross = 4;
  SBHAL_INLINE static constexpr int held(int e) { return e % 4 / 2; }
  SBHAL_INLINE static constexpr int element(int h) { return 2 * h; }
  SBHAL_INLINE static int row(int e) { return lane() / 4 + 8 * (e % 4 / 2); }
  SBHAL_INLINE static int column(int e) { return 2 * (lane() % 4) + e % 2 + 8 * (e / 4); }

  template <Stored stored> SBHAL_INLINE static uint32_t pair(const T* p, int pitch, int i, int k) {
    uint16_t bits[2];
    operands<stored>(p, pitch, i, k, bits);
    return bits[0] | static_cast<uint32_t>(bits[1]) << 16;
  }

  template <Stored a_stored, Stored b_stored>
  SBHAL_INLINE static void multiply(const T* a, int a_pitch, const T* b, int b_pitch, float (&c)[8] SBHAL_SITE) {
    constexpr Stored b_by_columns = kTransposed<b_stored>;
    const int i = lane() / 4, k = 2 * (lane() % 4);
    const uint32_t a4[4] = {pair<a_stored>(a, a_pitch, i, k), pair<a_stored>(a, a_pitch, i + 8, k),
                            pair<a_stored>(a, a_pitch, i, k + 8), pair<a_stored>(a, a_pitch, i + 8, k + 8)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t b2[2] = {pair<b_by_columns>(b, b_pitch, i + 8 * half, k),
                              pair<b_by_columns>(b, b_pitch, i + 8 * half, k + 8)};
      vendor::mma_16x8x16<kBrainFloat<T>>(a4, b2, c + 4 * half SBHAL_HERE);
    }
  }
};
#endif

// Each lane sums a block of rows and columns, so that it reads less than two operands a product.
template <class T> struct FloatUnit {
  static constexpr int kElements = 256 / SBHAL_WAVE, kHeldRows = 2, kColumns = kElements / 2, kAcross = 16 / kColumns;
  SBHAL_INLINE static constexpr int held(int e) { return e / kColumns; }
  SBHAL_INLINE static constexpr int element(int h) { return h * kColumns; }
  SBHAL_INLINE static int row(int e) { return kHeldRows * (lane() / kAcross) + e / kColumns; }
  SBHAL_INLINE static int column(int e) { return kColumns * (lane() % kAcross) + e % kColumns; }

  template <Stored a_stored, Stored b_stored> SBHAL_INLINE static void multiply(const T* a, int a_pitch, const T* b,
                                                                                int b_pitch,
                                                                                float (&c)[kElements] SBHAL_SITE) {
    SBHAL_CONVERGE();
#pragma unroll 4  // of all sixteen, compilers read the operands ahead and spill
    for (int k = 0; k < 16; ++k) {
      float left[kHeldRows], right[kColumns];
#pragma unroll
      for (int i = 0; i < kHeldRows; ++i) left[i] = to_float(operand<a_stored>(a, a_pitch, row(i * kColumns), k));
#pragma unroll
      for (int j = 0; j < kColumns; ++j) right[j] = to_float(operand<b_stored>(b, b_pitch, k, column(j)));
#pragma unroll
      for (int e = 0; e < kElements; ++e) c[e] += left[e / kColumns] * right[e % kColumns];
    }
  }
};

#if defined(SBHAL_MMA_16X16X16) || defined(SBHAL_MMA_16X8X16)
template <class T> struct UnitOf {
  using type = MatrixUnit<T>;
};
template <> struct UnitOf<float> {
  using type = FloatUnit<float>;
};
#else
template <class T> struct UnitOf {
  using type = FloatUnit<T>;
};
#endif

// A 16 x 16 float32 tile spread over the lanes of one wavefront.
template <class T> struct MmaTile {
  using Unit = typename UnitOf<T>::type;
  float c[Unit::kElements];

  SBHAL_INLINE void zero() {
#pragma unroll
    for (float& value : c) value = 0;
  }

  // this += A B for 16 x 16 operands in memory, which start on 16 bytes with a pitch that is a multiple of 8. Every
  // lane of the wavefront must make the call, and what it reads must lie behind a wave_sync() or __syncthreads().
  template <Stored a_stored = Stored::rows, Stored b_stored = Stored::rows>
  SBHAL_INLINE void multiply(const T* a, int a_pitch, const T* b, int b_pitch SBHAL_SITE) {
    Unit::template multiply<a_stored, b_stored>(a, a_pitch, b, b_pitch, c SBHAL_HERE);
  }

  // Calls f(row, column, value&) for the elements that this lane holds.
  template <class F> SBHAL_INLINE void each(const F& f) {
#pragma unroll
    for (int e = 0; e < Unit::kElements; ++e) f(Unit::row(e), Unit::column(e), c[e]);
  }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
