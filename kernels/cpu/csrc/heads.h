// Products within an attention head, whose right factors are made anew for every window.
//
// They are packed like parameters (gemm.h), except that columns are rounded up to whole vectors only and panels are as
// even as can be: 13 vectors are 3, 3, 3 and 4, since a panel of one vector would leave the CPU waiting for its sums.
#pragma once

#include "rows.h"
#include "transpose.h"

namespace astroco {

constexpr int64_t vectors(int64_t columns) { return (columns + W - 1) / W; }

// f(j, n) for each panel of these columns: its first and how many it has.
template <class F>
inline void panels(int64_t columns, F&& f) {
  const int64_t all = vectors(columns), count = (all + VECTORS - 1) / VECTORS;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t j = i * all / count;
    f(j * W, ((i + 1) * all / count - j) * W);
  }
}

template <class T>
constexpr int64_t head_size(int64_t k, int64_t columns) {
  return round_up(k, STEP<T>) * vectors(columns) * W;
}

// C (m, columns rounded up to W) = A B or C += A B, B packed as below.
template <class T>
inline void head_product(Left<T> a, int64_t m, int64_t k, const T* b, int64_t columns, float* c, int64_t ldc,
                         bool add = false) {
  const int64_t depth = round_up(k, STEP<T>);
  panels(columns, [&](int64_t j, int64_t n) { gemm_panel(a, m, k, b + j * depth, n, c + j, ldc, add); });
}

// B (depth, rows) = the transpose of `rows` rows of `depth` columns, a multiple of STEP. STEP numbers are moved as one.
template <class T>
inline void pack_transposed(T* packed, const T* source, int64_t ld, int64_t rows, int64_t depth) {
  static_assert(sizeof(T) * STEP<T> == sizeof(float));
  const int64_t steps = depth / STEP<T>;
  auto* from = reinterpret_cast<const float*>(source);
  auto* to = reinterpret_cast<float*>(packed);
  panels(rows, [&](int64_t j, int64_t n) {
    const int64_t real = std::min(n, rows - j);
    float* panel = to + j * steps;
    if (real < n) std::fill(panel, panel + n * steps, 0.0f);
    transpose(from + j * (ld / STEP<T>), ld / STEP<T>, real, steps, panel, n);
  });
}

// B (depth, columns) = `rows` rows of `columns` columns, and zeros below them.
template <class T>
inline void pack_upright(T* packed, const T* source, int64_t ld, int64_t rows, int64_t columns, int64_t depth) {
  depth = round_up(depth, STEP<T>);
  panels(columns, [&](int64_t j, int64_t n) {
    const int64_t real = std::min(n, columns - j);
    T* to = packed + j * depth;
    for (int64_t r = 0; r < rows; r += STEP<T>, to += n * STEP<T>) {
      const T* row = source + r * ld + j;
      if constexpr (STEP<T> == 1)
        std::copy(row, row + real, to);
      else
        interleave(row, r + 1 < rows ? row + ld : nullptr, real, to);
      std::fill(to + real * STEP<T>, to + n * STEP<T>, T(0.0f));
    }
    std::fill(to, packed + (j + n) * depth, T(0.0f));
  });
}

// The first n of 2 W numbers.
template <class T>
inline void store_some(T* p, Two v, int64_t n) {
  if (n >= 2 * W) return store2(p, v);
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    const auto all = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v.b, v.a));
    if (n <= 8) return _mm_mask_storeu_epi16(p, (1u << n) - 1, _mm512_castsi512_si128(all));
    return _mm512_mask_storeu_epi16(p, (uint32_t(1) << n) - 1, all);
  }
#endif
  alignas(64) T lanes[2 * W];
  store2(lanes, v);
  std::copy(lanes, lanes + n, p);
}

// 2^x, 2^0 exactly: to 2e-7 of it or, where BFloat16 will round it, to 1e-4.
template <class T>
ALWAYS_INLINE Vec exp2(Vec x) {
#ifdef CPU_CAPABILITY_AVX512
  if constexpr (!std::is_same_v<T, float>) {
    const Vec part(_mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF));  // from x's floor, which is what scalef takes
    Vec power = at::vec::fmadd(part, Vec(0.0770591f), Vec(0.22765365f));
    power = at::vec::fmadd(power, part, Vec(0.69511487f));
    power = at::vec::fmadd(power, part, Vec(1.0f));
    return Vec(_mm512_scalef_ps(power, x));
  }
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec part = x - Vec(whole);
  Vec power = at::vec::fmadd(part, Vec(0.001326472731f), Vec(0.009671512991f));
  power = at::vec::fmadd(power, part, Vec(0.05550733581f));
  power = at::vec::fmadd(power, part, Vec(0.2402224243f));
  power = at::vec::fmadd(power, part, Vec(0.6931470037f));
  power = at::vec::fmadd(power, part, Vec(1.0f));
  return Vec(_mm512_scalef_ps(power, whole));
#else
  return exponential<float>(x * Vec(0.6931471806f));
#endif
}

constexpr float LOG2_E = 1.442695041f;

// What softmax makes of a row of scores: exponentials, not yet divided by their sum.
struct Softmax {
  float largest, sum;  // of scores and of exponentials
};

// p = 2^(factor (s - max s)) for n scores in each of R rows, zero beyond them up to the next multiple of 2 W, which s
// has room for. A row of p may start where its scores do.
template <int R, class T>
inline void softmax(float* s, int64_t lds, int64_t n, float factor, T* p, int64_t ldp, Softmax* found) {
  const int64_t end = round_up(n, 2 * W);
  Two most[R], total[R];
  for (int i = 0; i < R; ++i) {
    std::fill(s + i * lds + n, s + i * lds + end, -1e30f);
    most[i] = {Vec(-1e30f), Vec(-1e30f)};
    total[i] = {Vec(0.0f), Vec(0.0f)};
  }
  for (int64_t j = 0; j < end; j += 2 * W)
    for (int i = 0; i < R; ++i)
      most[i] = map(most[i], load2(s + i * lds + j), [](Vec m, Vec v) { return at::vec::clamp_min(v, m); });
  const Vec by(factor);
  for (int i = 0; i < R; ++i) found[i].largest = largest(at::vec::maximum(most[i].a, most[i].b));
  for (int64_t j = 0; j < end; j += 2 * W)
    for (int i = 0; i < R; ++i) {
      // The difference first: a product rounded by itself would leave huge scores an exponent of their own.
      const Vec top(found[i].largest);
      Two e = map(load2(s + i * lds + j), [&](Vec v) { return exp2<T>((v - top) * by); });
      total[i] = total[i] + e;
      store2(p + i * ldp + j, e);
    }
  for (int i = 0; i < R; ++i) found[i].sum = sum(total[i]);
}

}  // namespace astroco
