// SIMD: ATen's portable vectors, and the few functions that the ops are made of.
//
// T is the compute type, float, BFloat16 or int8; arithmetic is always float. Two vectors (2 W numbers) are loaded or
// stored at a time, because that is one vector of BFloat16.
#pragma once

#include <ATen/cpu/vec/functional.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

// For functions of a few instructions: the compiler would call some of them, and pass vectors through memory.
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace astroco {

using bf16 = c10::BFloat16;
using Vec = at::vec::Vectorized<float>;
constexpr int64_t W = Vec::size();

// H, what half rows (rows.h) are made of. The compute type int8 is that of products with weights only (int8.h).
template <class T>
using Half = std::conditional_t<std::is_same_v<T, int8_t>, bf16, T>;

// Columns of a half row come in multiples of this, whatever the vector's size: see kernels/tensors.py.
constexpr int64_t PITCH = 32;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int64_t pitch(int64_t width) { return round_up(width, PITCH); }

struct Two {
  Vec a, b;
};

ALWAYS_INLINE Two load2(const float* p) { return {Vec::loadu(p), Vec::loadu(p + W)}; }

ALWAYS_INLINE Two load2(const bf16* p) {
#ifdef CPU_CAPABILITY_AVX512
  auto widen = [](const bf16* q) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
    return Vec(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
  };
  return {widen(p), widen(p + W)};
#else
  auto [a, b] = at::vec::convert_bfloat16_float(at::vec::Vectorized<bf16>::loadu(p));
  return {a, b};
#endif
}

ALWAYS_INLINE void store2(float* p, Two v) {
  v.a.store(p);
  v.b.store(p + W);
}

ALWAYS_INLINE void store2(bf16* p, Two v) {
#ifdef __AVX512BF16__
  // Two instructions where ATen's rounding takes sixteen.
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v.b, v.a)));
#else
  at::vec::convert_float_bfloat16(v.a, v.b).store(p);
#endif
}

// The first n of 2 W numbers, n > 0; the others are zero.
ALWAYS_INLINE Two load2(const float* p, int64_t n) {
  if (n >= 2 * W) return load2(p);
  if (n > W) return {Vec::loadu(p), Vec::loadu(p + W, n - W)};
  return {Vec::loadu(p, n), Vec(0.0f)};
}

#ifdef __AVX512VNNI__
ALWAYS_INLINE Two load2(const bf16* p, int64_t n) {
  if (n >= 2 * W) return load2(p);
  alignas(64) bf16 some[2 * W];
  _mm512_store_si512(some, _mm512_maskz_loadu_epi16((uint32_t(1) << n) - 1, p));
  return load2(some);
}
#endif

ALWAYS_INLINE void store2(float* p, Two v, int64_t n) {
  if (n >= 2 * W) return store2(p, v);
  v.a.store(p, n < W ? n : W);
  if (n > W) v.b.store(p + W, n - W);
}

ALWAYS_INLINE float sum(Vec v) {
  return at::vec::vec_reduce_all<float>([](Vec& x, Vec& y) { return x + y; }, v);
}
ALWAYS_INLINE float largest(Vec v) {
  return at::vec::vec_reduce_all<float>([](Vec& x, Vec& y) { return at::vec::maximum(x, y); }, v);
}

// e^x to the last bit or, where BFloat16 will round it anyway, to 20 units in the last place and quicker.
template <class T>
inline Vec exponential(Vec x) {
  return std::is_same_v<T, float> ? x.exp() : x.exp_u20();
}

#ifdef CPU_CAPABILITY_AVX512
// 2^x to 1e-4 of it.
ALWAYS_INLINE Vec rough_exp2(Vec x) {
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec part = x - Vec(whole);
  Vec power = at::vec::fmadd(part, Vec(0.0555041f), Vec(0.2402265f));
  power = at::vec::fmadd(power, part, Vec(0.6931472f));
  power = at::vec::fmadd(power, part, Vec(1.0f));
  return Vec(_mm512_scalef_ps(power, whole));
}
#endif

template <class T>
inline Vec sigmoid(Vec x) {
#ifdef CPU_CAPABILITY_AVX512
  if constexpr (std::is_same_v<T, int8_t>) return Vec(_mm512_rcp14_ps(Vec(1.0f) + rough_exp2(x * Vec(-1.442695041f))));
#endif
  Vec y = Vec(1.0f) / (Vec(1.0f) + exponential<T>(x.neg()));
  return std::is_same_v<T, float> ? y : Vec::blendv(y, x, x != x);  // the quick exponential makes a number of NaN
}

// The normal distribution's cumulative function and density, which GELU(x) = x cdf(x) and its derivative cdf + x pdf
// are made of. Abramowitz & Stegun 7.1.26, to 1.5e-7, which has both in one exponential.
struct Normal {
  Vec cdf, pdf;
};

template <class T>
inline Normal normal(Vec x) {
  Vec size = x.abs();
  Vec density = exponential<T>(x * x * Vec(-0.5f));
  Vec t = Vec(1.0f) / at::vec::fmadd(size, Vec(0.3275911f * 0.70710678f), Vec(1.0f));
  Vec poly = at::vec::fmadd(t, Vec(0.5f * 1.061405429f), Vec(0.5f * -1.453152027f));
  poly = at::vec::fmadd(poly, t, Vec(0.5f * 1.421413741f));
  poly = at::vec::fmadd(poly, t, Vec(0.5f * -0.284496736f));
  poly = at::vec::fmadd(poly, t, Vec(0.5f * 0.254829592f));
  Vec tail = poly * t * density;  // of the side that x is on
  Vec cdf = Vec::blendv(tail, Vec(1.0f) - tail, x >= Vec(0.0f));
  return {cdf, density * Vec(0.3989422804f)};
}

// For BFloat16, cdf - 1/2 as an odd polynomial up to 4.25, a minimax fit of x cdf(x) to 6e-5, a tenth of what rounding
// x does to it: half the instructions, and no division.
template <class T>
inline Vec gelu(Vec x) {
  if constexpr (std::is_same_v<T, float>) {
    return x * normal<T>(x).cdf;
  } else {
    constexpr float COEFFICIENTS[] = {-6.33500839e-09f, 2.60908158e-07f, -6.29855e-06f,  0.000100892504f,
                                      -0.0011575413f,   0.00999632834f,  -0.0666729599f, 0.399114233f};
    Vec near = at::vec::clamp(x, Vec(-4.25f), Vec(4.25f)), square = near * near, poly = Vec(6.76425722e-11f);
    for (float c : COEFFICIENTS) poly = at::vec::fmadd(poly, square, Vec(c));
    return x * at::vec::fmadd(poly, near, Vec(0.5f));
  }
}

}  // namespace astroco
