// SIMD: ATen's portable vectors, and the few functions that the ops are made of.
//
// T is the compute type, float, BFloat16 or int8; arithmetic is always float. Two vectors (2 W numbers) are loaded or
// stored at a time, because that is one vector of BFloat16.
#pragma once

#include <ATen/cpu/vec/functional.h>

#include <cmath>
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
ALWAYS_INLINE Vec exponential(Vec x) {
  if constexpr (!std::is_same_v<T, float>) return x.exp_u20();
#ifdef CPU_CAPABILITY_AVX512
  // 2^whole e^rest, the latter by a polynomial (Cephes' expf): ATen calls a function, before which all registers go to
  // memory. Of two numbers, max and min take the second where one is NaN.
  const __m512 at = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), x));
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(at, _mm512_set1_ps(1.442695041f)),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec rest(_mm512_fnmadd_ps(whole, _mm512_set1_ps(-1.904654323e-9f),
                                  _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.6931471825f), at)));
  Vec power = at::vec::fmadd(rest, Vec(1.9875691500e-4f), Vec(1.3981999507e-3f));
  power = at::vec::fmadd(power, rest, Vec(8.3334519073e-3f));
  power = at::vec::fmadd(power, rest, Vec(4.1665795894e-2f));
  power = at::vec::fmadd(power, rest, Vec(1.6666665459e-1f));
  power = at::vec::fmadd(power, rest, Vec(5.0000001201e-1f));
  power = at::vec::fmadd(power, rest * rest, rest) + Vec(1.0f);
  return Vec(_mm512_scalef_ps(power, whole));
#else
  return x.exp();
#endif
}

#ifdef CPU_CAPABILITY_AVX512
// A function that rises from 0 to 1, by a parabola on each of 32 intervals, for where BFloat16 or int8 will round it
// anyway: its coefficients are found by one permutation each, where a polynomial that is as good takes twice the
// instructions. It is exactly 0 below the second interval and 1 above the last but one; NaN stays NaN.
class Pieces {
 public:
  // Intervals are 1 / k long, the middle ones of -16 / k to 15 / k.
  template <class F>
  Pieces(double k, F&& f) : k_(float(k)), first_(float(-16 / k)), last_(float(15 / k)) {
    for (int i = 0; i < 32; ++i) {
      if (i == 0 || i == 31) {
        coefficients_[0][i] = i == 0 ? 0.0f : 1.0f;
        coefficients_[1][i] = coefficients_[2][i] = 0.0f;
        continue;
      }
      // Through the function at Chebyshev's nodes x - d, x and x + d.
      const double x = (i - 16) / k, d = 0.8660254037844386 * 0.5 / k;
      const double below = f(x - d), at = f(x), above = f(x + d);
      const double slope = (above - below) / (2 * d), bend = (above - 2 * at + below) / (2 * d * d);
      coefficients_[0][i] = float(at - slope * x + bend * x * x);
      coefficients_[1][i] = float(slope - 2 * bend * x);
      coefficients_[2][i] = float(bend);
    }
  }

  // The same with all coefficients in registers. Else, a loop would load them again after everything that it stores.
  class Loaded {
   public:
    ALWAYS_INLINE explicit Loaded(const Pieces& of)
        : k_(_mm512_set1_ps(of.k_)), first_(_mm512_set1_ps(of.first_)), last_(_mm512_set1_ps(of.last_)) {
      for (int power = 0; power < 3; ++power)
        for (int half = 0; half < 2; ++half)
          coefficients_[power][half] = _mm512_load_ps(of.coefficients_[power] + 16 * half);
    }

    ALWAYS_INLINE Vec operator()(Vec x) const {
      // Of two numbers these take the second where one is NaN.
      const __m512 at = _mm512_min_ps(last_, _mm512_max_ps(first_, x));
      constexpr float WHOLE = 12582912.0f;  // 1.5 * 2^23: what is added to it becomes a whole number in its low bits
      const __m512i i = _mm512_castps_si512(_mm512_fmadd_ps(at, k_, _mm512_set1_ps(WHOLE + 16.0f)));
      auto coefficient = [&](int power) {
        return _mm512_permutex2var_ps(coefficients_[power][0], i, coefficients_[power][1]);
      };
      return Vec(_mm512_fmadd_ps(_mm512_fmadd_ps(coefficient(2), at, coefficient(1)), at, coefficient(0)));
    }

   private:
    __m512 coefficients_[3][2], k_, first_, last_;
  };

 private:
  alignas(64) float coefficients_[3][32];
  float k_, first_, last_;
};

// To 2e-4, and to 5e-5.
inline const Pieces SIGMOID(1.7, [](double x) { return 1 / (1 + std::exp(-x)); });
inline const Pieces NORMAL(3.5, [](double x) { return 0.5 * std::erfc(-0.7071067811865476 * x); });
#endif

// For loops over vectors: made before one, called in it.
template <class T>
struct Sigmoid {
  ALWAYS_INLINE Vec operator()(Vec x) const { return Vec(1.0f) / (Vec(1.0f) + exponential<T>(x.neg())); }
};

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

template <class T>
struct Gelu {
  ALWAYS_INLINE Vec operator()(Vec x) const { return x * normal<T>(x).cdf; }
};

#ifdef CPU_CAPABILITY_AVX512
template <class T>
  requires(!std::is_same_v<T, float>)
struct Sigmoid<T> {
  Pieces::Loaded of{SIGMOID};
  ALWAYS_INLINE Vec operator()(Vec x) const { return of(x); }
};

template <class T>
  requires(!std::is_same_v<T, float>)
struct Gelu<T> {
  Pieces::Loaded cdf{NORMAL};
  ALWAYS_INLINE Vec operator()(Vec x) const { return x * cdf(x); }
};
#endif

template <class T>
ALWAYS_INLINE Vec sigmoid(Vec x) {
  return Sigmoid<T>()(x);
}

template <class T>
ALWAYS_INLINE Vec gelu(Vec x) {
  return Gelu<T>()(x);
}

}  // namespace astroco
