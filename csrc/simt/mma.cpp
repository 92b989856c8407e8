// Matrix products: every lane gives its operands, the last one computes the tile for all.
#include "schedule.h"

namespace simt {
namespace {

float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Exact, without a branch, so that loops over it become vectors.
template <bool brain_float> float widened(uint32_t bits) {
  if (brain_float) return as_float(bits << 16);
  const uint32_t sign = (bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  const float finite = as_float(magnitude << 13) * as_float(239u << 23);  // 2^112 between the ranges of exponents
  uint32_t finite_bits;
  __builtin_memcpy(&finite_bits, &finite, 4);
  return as_float(sign | (magnitude >= 0x7c00 ? 0x7f800000 | (magnitude & 0x3ff) << 13 : finite_bits));
}

// c += a b, with b by columns; by vectors of eight columns.
template <bool brain_float, int columns>
void multiply(const uint16_t (&a)[16][16], const uint16_t (&b)[columns][16], float (&c)[16][columns]) {
  typedef float Row __attribute__((vector_size(8 * sizeof(float))));
  for (int first = 0; first < columns; first += 8) {
    Row right[16];
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) right[k][j] = widened<brain_float>(b[first + j][k]);
    for (int i = 0; i < 16; ++i) {
      Row sum;
      __builtin_memcpy(&sum, c[i] + first, sizeof(sum));
      for (int k = 0; k < 16; ++k) sum += widened<brain_float>(a[i][k]) * right[k];
      __builtin_memcpy(c[i] + first, &sum, sizeof(sum));
    }
  }
}

// Lanes beyond those that the unit has (the simulated wavefront may be longer) take no part.
template <bool brain_float> void multiply_16x8x16(Wave& wave) {
  uint16_t a[16][16], b[8][16];
  float c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Operands& given = wave.operands[lane];
    const int row = lane / 4, k = lane % 4 * 2;
    for (int e = 0; e < 4; ++e)
      __builtin_memcpy(&a[row + e % 2 * 8][k + e / 2 * 8], static_cast<const uint32_t*>(given.a) + e, 4);
    for (int e = 0; e < 2; ++e) __builtin_memcpy(&b[row][k + e * 8], static_cast<const uint32_t*>(given.b) + e, 4);
    for (int e = 0; e < 4; ++e) c[row + e / 2 * 8][k + e % 2] = given.c[e];
  }
  multiply<brain_float>(a, b, c);
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) wave.operands[lane].c[e] = c[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
}

template <bool brain_float> void multiply_16x16x16(Wave& wave) {
  uint16_t a[16][16], b[16][16];
  float c[16][16];
  for (int lane = 0; lane < 64; ++lane) {
    const Operands& given = wave.operands[lane];
    const int row = lane % 16, k = lane / 16 * 4;
    __builtin_memcpy(&a[row][k], given.a, 8);
    __builtin_memcpy(&b[row][k], given.b, 8);
    for (int e = 0; e < 4; ++e) c[k + e][row] = given.c[e];
  }
  multiply<brain_float>(a, b, c);
  for (int lane = 0; lane < 64; ++lane)
    for (int e = 0; e < 4; ++e) wave.operands[lane].c[e] = c[lane / 16 * 4 + e][lane % 16];
}

void give(const void* a, const void* b, float* c) { worker->wave().operands[position.thread % kWave] = {a, b, c}; }

}  // namespace

void mma_16x8x16(bool brain_float, const uint32_t a[4], const uint32_t b[2], float c[4], Site site) {
  static_assert(kWave >= 32, "the unit needs 32 lanes");
  give(a, b, c);
  worker->meet(Operation::mma, site, brain_float ? multiply_16x8x16<true> : multiply_16x8x16<false>);
}

void mma_16x16x16(bool brain_float, const uint16_t a[4], const uint16_t b[4], float c[4], Site site) {
  if (kWave < 64) worker->fail("the unit needs a wavefront of 64", name_of(Operation::mma), site);
  give(a, b, c);
  worker->meet(Operation::mma, site, brain_float ? multiply_16x16x16<true> : multiply_16x16x16<false>);
}

}  // namespace simt
