// Products of rows with weights in int8: y = (sum_k q_k w_k) * row's scale * column's scale.
//
// A row x becomes q = round(x / s) with s = max |x| / 127, a column of weights likewise; ties go to even. The sums are
// whole numbers, exact in int32, so results do not depend on the instructions that make them. vpdpbusd multiplies
// unsigned numbers with signed ones: for it, rows are q + 128, and sums start at minus 128 times the column's sum. AMX
// multiplies signed numbers. A row with a NaN or an infinity has the scale NaN, and so only NaN for products.
//
// A packed panel is the columns' whole numbers as `gemm.h` describes, their scales (float), and what vpdpbusd's sums
// start at (int32).
#pragma once

#include <c10/util/bit_cast.h>

#include "gemm.h"

namespace astroco {

constexpr float LEVELS = 127.0f;
constexpr float LEAST = 1e-30f;  // max |x| counts as no less, so that its inverse is finite

// What follows a panel's numbers: its columns' scales, and where their sums start.
template <class Byte>
struct Columns {
  Byte* panel;
  int64_t columns, steps;

  auto* scales() const {
    return reinterpret_cast<Like<float>*>(panel + columns * packed_steps<int8_t>(steps) * STEP<int8_t>);
  }
  auto* starts() const { return reinterpret_cast<Like<int32_t>*>(scales() + columns); }

 private:
  template <class X>
  using Like = std::conditional_t<std::is_const_v<Byte>, const X, X>;
};
template <class Byte>
Columns(Byte*, int64_t, int64_t) -> Columns<Byte>;

// A column that has a NaN or an infinity gets the scale NaN.
template <>
inline void pack(const PackArguments<int8_t>& a) {
  const int64_t k = a.transposed ? a.rows : a.width, n = a.transposed ? a.width : a.rows, end = pitch(n);
  const int64_t by_k = a.transposed ? n : 1, by_n = a.transposed ? 1 : k, steps = steps_of<int8_t>(k);
  parallel_for(a.threads, (end + PANEL - 1) / PANEL, [&](int64_t i) {
    const int64_t start = i * PANEL, columns = std::min(PANEL, end - start), size = column_size<int8_t>(k);
    int8_t* panel = a.packed + start * size;
    std::fill(panel, panel + columns * size, int8_t(0));
    const Columns made{panel, columns, steps};
    for (int64_t j = 0; j < std::min(columns, n - start); ++j) {
      const float* weight = a.weight + (start + j) * by_n;
      float most = LEAST, finite = 0.0f;
      for (int64_t r = 0; r < k; ++r) {
        most = std::max(most, std::abs(weight[r * by_k]));
        finite += weight[r * by_k] - weight[r * by_k];
      }
      made.scales()[j] = most / LEVELS + finite;
      if (finite != 0.0f) continue;
      for (int64_t r = 0; r < k; ++r) {
        const auto q = int8_t(std::nearbyint(weight[r * by_k] * (LEVELS / most)));
        panel[r / STEP<int8_t> * STEP<int8_t> * columns + j * STEP<int8_t> + r % STEP<int8_t>] = q;
        made.starts()[j] -= 128 * q;
      }
    }
  });
}

#ifdef __AVX512VNNI__

// The largest sizes of rows of numbers as their bits, which order as sizes do; those of NaN are above infinity's.
template <class X>
class Largest;

template <>
class Largest<float> {
 public:
  static constexpr int64_t STEP = W;
  // The first n of STEP numbers.
  ALWAYS_INLINE void take(const float* x, int64_t n) {
    const __mmask16 some = n >= STEP ? 0xffff : (1u << n) - 1;
    most_ = _mm512_max_epu32(most_, _mm512_and_si512(_mm512_maskz_loadu_epi32(some, x), _mm512_set1_epi32(0x7fffffff)));
  }
  uint32_t bits() const { return _mm512_reduce_max_epu32(most_); }

 private:
  __m512i most_ = _mm512_setzero_si512();
};

template <>
class Largest<bf16> {
 public:
  static constexpr int64_t STEP = 2 * W;
  ALWAYS_INLINE void take(const bf16* x, int64_t n) {
    const __mmask32 some = n >= STEP ? 0xffffffff : (uint32_t(1) << n) - 1;
    most_ = _mm512_max_epu16(most_, _mm512_and_si512(_mm512_maskz_loadu_epi16(some, x), _mm512_set1_epi16(0x7fff)));
  }
  uint32_t bits() const {
    const __m512i low = _mm512_slli_epi32(most_, 16), high = _mm512_andnot_si512(_mm512_set1_epi32(0xffff), most_);
    return _mm512_reduce_max_epu32(_mm512_max_epu32(low, high));
  }

 private:
  __m512i most_ = _mm512_setzero_si512();
};

// The first n of 64 numbers, times `by`, as whole numbers of a byte; zeros beyond them.
ALWAYS_INLINE __m512i whole(const float* x, int64_t n, __m512 by) {
  auto four = [&](int64_t i) {
    const __mmask16 some = n >= i + W ? 0xffff : n > i ? (1u << (n - i)) - 1 : 0;
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), by));
  };
  // Of each four, packing leaves some after those of another.
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  const __m512i low = _mm512_packs_epi32(four(0), four(W)), high = _mm512_packs_epi32(four(2 * W), four(3 * W));
  return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
}

ALWAYS_INLINE __m512i whole(const bf16* x, int64_t n, __m512 by) {
  auto pairs = [&](int64_t i) {
    const __mmask32 some = n >= i + 2 * W ? 0xffffffff : n > i ? (uint32_t(1) << (n - i)) - 1 : 0;
    const __m512i both = _mm512_maskz_loadu_epi16(some, x + i);
    auto scaled = [&](__m512i v) { return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(v), by)); };
    const __m512i even = scaled(_mm512_slli_epi32(both, 16)),
                  odd = scaled(_mm512_andnot_si512(_mm512_set1_epi32(0xffff), both));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
  };
  const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
  return _mm512_permutexvar_epi64(order, _mm512_packs_epi16(pairs(0), pairs(2 * W)));
}

// R rows of n numbers to q, and zeros up to the next multiple of 64; their scales. `ld` and `ldq` lead from row to row.
template <int R, class X>
inline void quantise(const X* x, int64_t ld, int64_t n, int8_t* q, int64_t ldq, float* scales) {
  Largest<X> largest[R];
  __m512 by[R];
  for (int64_t j = 0; j < n; j += Largest<X>::STEP)
    for (int i = 0; i < R; ++i) largest[i].take(x + i * ld + j, n - j);
  for (int i = 0; i < R; ++i) {
    const uint32_t bits = largest[i].bits();
    const float most = std::max(LEAST, c10::bit_cast<float>(bits));
    by[i] = _mm512_set1_ps(LEVELS / most);
    scales[i] = bits < 0x7f800000 ? most / LEVELS : NAN;
  }
  for (int64_t j = 0; j < n; j += 64)
    for (int i = 0; i < R; ++i) {
      __m512i some = n - j >= 64 ? whole(x + i * ld + j, 64, by[i]) : whole(x + i * ld + j, n - j, by[i]);
#ifndef __AMX_BF16__
      some = _mm512_xor_si512(some, _mm512_set1_epi8(-128));  // q + 128
#endif
      _mm512_storeu_si512(q + i * ldq + j, some);
    }
}

// Sums of int32 in place of C, and what they are to be multiplied by.
template <>
struct Products<int8_t> {
  float* values;
  int64_t ld;
  const float *rows, *columns;  // their scales

  ALWAYS_INLINE Two operator()(int64_t r, int64_t j, Two bias) const {
    const Vec row(rows[r]);
    const float* sums = at(r) + j;
    auto one = [&](int64_t i, Vec bias) {
      const Vec sum(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums + i)));
      return at::vec::fmadd(sum, Vec::loadu(columns + j + i) * row, bias);
    };
    return {one(0, bias.a), one(W, bias.b)};
  }
  float* at(int64_t r) const { return values + r * ld; }
};

template <>
inline Products<int8_t> products_of(Left<int8_t> a, int64_t steps, const int8_t* b, int64_t columns, float* c,
                                    int64_t ldc) {
  return {c, ldc, a.scales, Columns{b, columns, steps}.scales()};
}

template <>
inline Products<int8_t> products(Left<int8_t> a, int64_t m, int64_t k, const int8_t* b, int64_t n, float* c,
                                 int64_t ldc, Scratch& scratch) {
  const int64_t size = column_size<int8_t>(k), end = pitch(n);
  float* scales = scratch.take<float>(end);
  for (int64_t j = 0; j < end; j += PANEL) {
    const int64_t columns = std::min(PANEL, end - j);
    std::copy_n(gemm_panel(a, m, k, b + j * size, columns, c + j, ldc).columns, columns, scales + j);
  }
  return {c, ldc, a.scales, scales};
}

#ifndef __AMX_BF16__

// M rows by N vectors of C, as gemm.h's for other types. Nothing is ever added to C.
template <int M, int N>
inline void micro_kernel(Left<int8_t> a, int64_t steps, const int8_t* b, const char*, float* c, int64_t ldc, bool) {
  const Columns of{b, N * W, steps};
  __m512i sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = _mm512_loadu_si512(of.starts() + n * W);
  for (int64_t k = 0; k < steps; ++k, a.values += a.step, b += N * W * STEP<int8_t>) {
    __m512i right[N];
    for (int n = 0; n < N; ++n) right[n] = _mm512_loadu_si512(b + n * W * STEP<int8_t>);
    for (int m = 0; m < M; ++m) {
      int32_t four;
      std::memcpy(&four, a.values + m * a.row, sizeof four);
      const __m512i left = _mm512_set1_epi32(four);
      for (int n = 0; n < N; ++n) sums[m][n] = _mm512_dpbusd_epi32(sums[m][n], left, right[n]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) _mm512_storeu_si512(c + m * ldc + n * W, sums[m][n]);
}

#endif
#endif

}  // namespace astroco
