// Vectors of float for the CPU kernels: compiler vector types, so one source serves every instruction set, with an
// intrinsic where the compiler can't find the instruction. `vf` holds kLanes floats, `vi` as many 32-bit integers;
// a comparison of two vf is a vi of 0 and -1, the mask that select() takes. Arithmetic operators work on both.
#pragma once
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "scalar.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef uint32_t vu __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vh __attribute__((vector_size(2 * kLanes)));
typedef float vf_unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t vh_unaligned __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

// ---- whole vectors

SBHAL_INLINE vf set(float x) { return x - vf{}; }
SBHAL_INLINE vf zero() { return vf{}; }
SBHAL_INLINE vf bits_as_float(vi x) { return reinterpret_cast<vf>(x); }
SBHAL_INLINE vi float_as_bits(vf x) { return reinterpret_cast<vi>(x); }
SBHAL_INLINE vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }
SBHAL_INLINE vf vmax(vf a, vf b) { return select(a > b, a, b); }  // b where either is NaN
SBHAL_INLINE vf vmin(vf a, vf b) { return select(a < b, a, b); }
SBHAL_INLINE vf vabs(vf x) { return bits_as_float(float_as_bits(x) & 0x7fffffff); }
SBHAL_INLINE vi to_int(vf x) { return __builtin_convertvector(x, vi); }  // toward zero
SBHAL_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

SBHAL_INLINE vf round_even(vf x) {
#if defined(__AVX512F__)
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vf magic = set(8388608.0f);  // 2^23: adding it drops the fraction in the current rounding mode
  const vf magnitude = vabs(x);
  const vf rounded = (magnitude + magic) - magic;
  const vf result = select(magnitude < magic, rounded, magnitude);
  return bits_as_float(float_as_bits(result) | (float_as_bits(x) & static_cast<int32_t>(0x80000000)));
#endif
}

SBHAL_INLINE vf exp2_integer(vf p, vf n) {  // p * 2^n, n integral
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  const vi whole = to_int(n), half = whole >> 1;
  return p * bits_as_float((half + 127) << 23) * bits_as_float((whole - half + 127) << 23);
#endif
}

// e^x to about 1 ulp; 0 at -inf, inf at +inf, NaN stays NaN.
SBHAL_INLINE vf exp(vf x) {
  x = select(x < set(-104.5f), set(-104.5f), select(x > set(89.0f), set(89.0f), x));
  const vf n = round_even(x * set(1.44269504f));
  vf r = x - n * set(0.693145752f);
  r = r - n * set(1.42860677e-6f);
  vf p = set(1.f / 5040);
  p = p * r + set(1.f / 720);
  p = p * r + set(1.f / 120);
  p = p * r + set(1.f / 24);
  p = p * r + set(1.f / 6);
  p = p * r + set(0.5f);
  p = p * r + set(1.f);
  p = p * r + set(1.f);
  return exp2_integer(p, n);
}

// 2^x to about 1 ulp; 0 at -inf, inf at +inf, NaN stays NaN.
SBHAL_INLINE vf exp2(vf x) {
  x = vmax(set(-150.0f), vmin(set(129.0f), x));
  const vf n = round_even(x), r = x - n;
  vf p = set(1.535336188e-4f);
  p = p * r + set(1.339887440e-3f);
  p = p * r + set(9.618437357e-3f);
  p = p * r + set(5.550332471e-2f);
  p = p * r + set(2.402264791e-1f);
  p = p * r + set(6.931472028e-1f);
  p = p * r + set(1.f);
  return exp2_integer(p, n);
}

// Horizontal reductions in a fixed order.
SBHAL_INLINE float sum(vf v) {
  float lane[kLanes];
  *reinterpret_cast<vf_unaligned*>(lane) = v;
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
SBHAL_INLINE float largest(vf v) {
  float lane[kLanes];
  *reinterpret_cast<vf_unaligned*>(lane) = v;
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = max(lane[i], lane[i + width]);
  return lane[0];
}

// ---- one element

SBHAL_INLINE float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
SBHAL_INLINE uint32_t as_bits(float x) { return __builtin_bit_cast(uint32_t, x); }

SBHAL_INLINE float to_float(float x) { return x; }
SBHAL_INLINE float to_float(bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
SBHAL_INLINE float to_float(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // 2^112 moves the half's exponent range onto the float's, subnormals included
  return as_float(sign | as_bits(as_float(magnitude << 13) * as_float(239u << 23)));
#endif
}

template <class T> SBHAL_INLINE T from_float(float x);
template <> SBHAL_INLINE float from_float<float>(float x) { return x; }
template <> SBHAL_INLINE bf16 from_float<bf16>(float x) {
  const uint32_t bits = as_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return bf16{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <> SBHAL_INLINE f16 from_float<f16>(float x) {
#if defined(__F16C__)
  return f16{static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return f16{static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return f16{static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 rounds to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 lines the fraction up with the half's last bit
    const uint32_t fraction = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
    return f16{static_cast<uint16_t>(sign | fraction)};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return f16{static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13)};
#endif
}

// ---- memory: any element type to and from float vectors; p need not be aligned

SBHAL_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
SBHAL_INLINE vf load(const bf16* p) {
  const vh h = *reinterpret_cast<const vh_unaligned*>(p);
  return reinterpret_cast<vf>(__builtin_convertvector(h, vu) << 16);
}
SBHAL_INLINE vf load(const f16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vf v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

SBHAL_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
SBHAL_INLINE void store(bf16* p, vf v) {
  const vu bits = reinterpret_cast<vu>(v);
  const vu rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const vu nan = reinterpret_cast<vu>((bits & 0x7fffffffu) > 0x7f800000u);
  *reinterpret_cast<vh_unaligned*>(p) = __builtin_convertvector((nan & (bits >> 16 | 0x40u)) | (~nan & rounded), vh);
}
SBHAL_INLINE void store(f16* p, vf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<f16>(v[i]);
#endif
}

// The first n elements (0 <= n <= kLanes); lanes past them read as zero and are not written.
template <class T> SBHAL_INLINE vf load(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  vf v = zero();
  for (int i = 0; i < n; ++i) v[i] = to_float(p[i]);
  return v;
}
template <class T> SBHAL_INLINE void store(T* p, vf v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  for (int i = 0; i < n; ++i) p[i] = from_float<T>(v[i]);
}
#if defined(__AVX512F__)
SBHAL_INLINE vf load(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1), p);
}
SBHAL_INLINE void store(float* p, vf v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1), v);
}
#endif

// Writes around the cache when p is aligned: for outputs larger than the last-level cache. Ends with stream_fence().
SBHAL_INLINE void stream(float* p, vf v) {
#if defined(__AVX512F__)
  if ((reinterpret_cast<uintptr_t>(p) & 63) == 0) return _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  if ((reinterpret_cast<uintptr_t>(p) & 31) == 0) return _mm256_stream_ps(p, v);
#endif
  store(p, v);
}
SBHAL_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// The same for kLanes 16-bit elements, half a vector of bytes.
SBHAL_INLINE void stream_half(void* p, vh v) {
#if defined(__AVX512F__)
  if ((reinterpret_cast<uintptr_t>(p) & 31) == 0)
    return _mm256_stream_si256(static_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#elif defined(__AVX2__)
  if ((reinterpret_cast<uintptr_t>(p) & 15) == 0)
    return _mm_stream_si128(static_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
#endif
  *static_cast<vh_unaligned*>(p) = v;
}
SBHAL_INLINE void stream(bf16* p, vf v) {
  vh rounded;
  store(reinterpret_cast<bf16*>(&rounded), v);
  stream_half(p, rounded);
}
SBHAL_INLINE void stream(f16* p, vf v) {
  vh rounded;
  store(reinterpret_cast<f16*>(&rounded), v);
  stream_half(p, rounded);
}

SBHAL_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
SBHAL_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }
SBHAL_INLINE void prefetch_write(const void* p) { __builtin_prefetch(p, 1, 3); }

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
