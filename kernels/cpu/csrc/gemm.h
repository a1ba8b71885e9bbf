// Matrix products of a few rows with a packed matrix: C = A B, A (M, K) and C float (M, N) row-major.
//
// B is packed into panels of PANEL columns, the last one narrower, each with K in steps of STEP: two for BFloat16,
// which the CPU multiplies and adds in pairs, and four for int8. A panel is read front to back for every ROWS rows of
// A, whose products stay in registers meanwhile. Columns are rounded up to PITCH, K to STEP, with zeros. Where the CPU
// has AMX, `amx.h` makes products of BFloat16 and int8 numbers of the same panels.
#pragma once

#include "amx.h"
#include "parallel.h"
#include "vec.h"

namespace astroco {

#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
constexpr int64_t VECTORS = 4;  // of 32 registers 24 hold products
#else
constexpr int64_t VECTORS = 2;  // 12 of 16
#endif
constexpr int64_t ROWS = 6;
// Rows are best multiplied in multiples of this: the rows of a block of sums.
#ifdef __AMX_BF16__
constexpr int64_t BLOCK_ROWS = 2 * TILE;
#else
constexpr int64_t BLOCK_ROWS = ROWS;
#endif
constexpr int64_t PANEL = VECTORS * W;

// f(r, n) for m rows, n from r on at a time: as many as the fastest cache holds beside a panel and its products.
// Vectors want a panel to stay there, which these rows would take turns with another one in.
template <class T, class F>
inline void by_blocks(int64_t m, F&& f) {
#ifdef __AMX_BF16__
  constexpr int64_t MOST = sizeof(T) == 1 ? 2 * BLOCK_ROWS : BLOCK_ROWS;
  for (int64_t r = 0; r < m; r += MOST) f(r, std::min(MOST, m - r));
#else
  if (m > 0) f(0, m);
#endif
}

template <class T>
constexpr int64_t STEP = sizeof(float) / sizeof(T);

// Steps of K numbers, and how many a packed column has room for: those of int8 are whole tiles, as its rows are
// (rows.h).
template <class T>
constexpr int64_t steps_of(int64_t k) {
  return (k + STEP<T> - 1) / STEP<T>;
}
template <class T>
constexpr int64_t packed_steps(int64_t steps) {
  return std::is_same_v<T, int8_t> ? round_up(steps, 16) : steps;
}

// Numbers that a packed column of K numbers takes up. int8 columns come with their scale and correction: see int8.h.
template <class T>
constexpr int64_t column_size(int64_t k) {
  return packed_steps<T>(steps_of<T>(k)) * STEP<T> + (std::is_same_v<T, int8_t> ? 8 : 0);
}

// One step: a number (or pair) of A in all lanes, a vector of B, and their product added to the sums.
inline Vec broadcast(const float* a) { return Vec(*a); }
inline Vec load_step(const float* b) { return Vec::loadu(b); }
inline Vec multiply_add(Vec a, Vec b, Vec sum) { return at::vec::fmadd(a, b, sum); }

#ifdef __AVX512BF16__
struct Pairs {
  __m512bh values;
};
inline Pairs broadcast(const bf16* a) {
  int32_t pair;
  std::memcpy(&pair, a, sizeof pair);
  return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair))};
}
inline Pairs load_step(const bf16* b) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(b))}; }
inline Vec multiply_add(Pairs a, Pairs b, Vec sum) { return Vec(_mm512_dpbf16_ps(sum, a.values, b.values)); }
#endif

// Where A's element (m, k) lies, k a multiple of STEP: at values[m * row + k / STEP * step]. Row-major A has row = lda
// and step = STEP; row = STEP and step = STEP * lda is the transpose of a matrix whose rows are interleaved by STEP;
// AMX has no use for it.
template <class T>
struct Left {
  const T* values;
  int64_t row, step = STEP<T>;

  Left operator+(int64_t rows) const { return {values + rows * row, row, step}; }
};

template <>
struct Left<int8_t> {
  const int8_t* values;
  int64_t row;
  const float* scales;  // what each row is to be multiplied by
  static constexpr int64_t step = STEP<int8_t>;

  Left operator+(int64_t rows) const { return {values + rows * row, row, scales + rows}; }
};

// C as it is read: 2 W columns of row r from j on, plus a bias. int8's sums are scaled when they are read (int8.h).
template <class T>
struct Products {
  float* values;
  int64_t ld;

  ALWAYS_INLINE Two operator()(int64_t r, int64_t j, Two bias) const {
    const float* c = at(r) + j;
    return {Vec::loadu(c) + bias.a, Vec::loadu(c + W) + bias.b};
  }
  float* at(int64_t r) const { return values + r * ld; }
};

// What lies after a panel, as a rule the next one, is read into the second-level cache while the panel is multiplied: a
// line every so many steps, so that some 100 rows read all of it.
constexpr int64_t LINE = 64, STEPS_A_LINE = 4;
constexpr int64_t ahead_by(int64_t steps) { return steps / STEPS_A_LINE * LINE; }

// M rows by N vectors of C. Where `add`, they are added to what C holds. `ahead` is what to read in advance.
template <int M, int N, class T>
inline void micro_kernel(Left<T> a, int64_t steps, const T* b, const char* ahead, float* c, int64_t ldc, bool add) {
  Vec sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = Vec(0.0f);
  for (int64_t k = 0; k < steps; ++k, a.values += a.step, b += N * W * STEP<T>) {
    if (k % STEPS_A_LINE == 0) __builtin_prefetch(ahead + ahead_by(k), 0, 2);
    decltype(load_step(b)) right[N];
    for (int n = 0; n < N; ++n) right[n] = load_step(b + n * W * STEP<T>);
    for (int m = 0; m < M; ++m) {
      auto left = broadcast(a.values + m * a.row);
      for (int n = 0; n < N; ++n) sums[m][n] = multiply_add(left, right[n], sums[m][n]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float* to = c + m * ldc + n * W;
      (add ? Vec::loadu(to) + sums[m][n] : sums[m][n]).store(to);
    }
}

// `count` blocks of M rows.
template <int M, int N, class T>
void blocks_of(int64_t count, Left<T> a, int64_t steps, const T* b, const char* ahead, float* c, int64_t ldc,
               bool add) {
  for (; count > 0; --count, a = a + M, ahead += ahead_by(steps), c += M * ldc)
    micro_kernel<M, N>(a, steps, b, ahead, c, ldc, add);
}

template <int N, class T>
void blocks(int64_t m, int64_t count, Left<T> a, int64_t steps, const T* b, const char* ahead, float* c, int64_t ldc,
            bool add) {
  switch (m) {
    case 1: return blocks_of<1, N>(count, a, steps, b, ahead, c, ldc, add);
    case 2: return blocks_of<2, N>(count, a, steps, b, ahead, c, ldc, add);
    case 3: return blocks_of<3, N>(count, a, steps, b, ahead, c, ldc, add);
    case 4: return blocks_of<4, N>(count, a, steps, b, ahead, c, ldc, add);
    case 5: return blocks_of<5, N>(count, a, steps, b, ahead, c, ldc, add);
    case 6: return blocks_of<6, N>(count, a, steps, b, ahead, c, ldc, add);
  }
}

// A with one panel of N vectors, in blocks of rows that are as even as can be: two rows take longer than a third of
// six.
template <int N, class T>
void panel_of(Left<T> a, int64_t m, int64_t steps, const T* b, float* c, int64_t ldc, bool add) {
  const int64_t count = (m + ROWS - 1) / ROWS, some = m / count, larger = m % count, rest = larger * (some + 1);
  const char* ahead = reinterpret_cast<const char*>(b + N * W * STEP<T> * steps);
  blocks<N>(some + 1, larger, a, steps, b, ahead, c, ldc, add);
  blocks<N>(some, count - larger, a + rest, steps, b, ahead + larger * ahead_by(steps), c + rest * ldc, ldc, add);
}

template <class T>
void some_steps(Left<T> a, int64_t m, int64_t steps, const T* b, int64_t columns, float* c, int64_t ldc, bool add) {
  switch (columns / W) {
    case 1: return panel_of<1>(a, m, steps, b, c, ldc, add);
    case 2: return panel_of<2>(a, m, steps, b, c, ldc, add);
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
    case 3: return panel_of<3>(a, m, steps, b, c, ldc, add);
    default: return panel_of<4>(a, m, steps, b, c, ldc, add);
#endif
  }
}

// Float products are added up in even parts of at most this many, and then the parts: one long sum would lose twice the
// digits.
constexpr int64_t DEPTH = 144;

// The products of A with a panel.
template <class T>
Products<T> products_of(Left<T>, int64_t, const T*, int64_t, float* c, int64_t ldc) {
  return {c, ldc};
}

// A (m, k) with the panel of `columns` columns (a multiple of W, at most PANEL) that starts at b.
template <class T>
Products<T> gemm_panel(Left<T> a, int64_t m, int64_t k, const T* b, int64_t columns, float* c, int64_t ldc,
                       bool add = false) {
  const int64_t steps = steps_of<T>(k);
  const auto made = products_of(a, steps, b, columns, c, ldc);
  if (m <= 0) return made;
#ifdef __AMX_BF16__
  if constexpr (!std::is_same_v<T, float>) {
    tile_product(a.values, a.row, m, packed_steps<T>(steps), b, columns, reinterpret_cast<Sum<T>*>(c), ldc, add);
  } else
#endif
  {
    const int64_t parts = (steps + DEPTH - 1) / DEPTH, most = STEP<T> == 1 ? (steps + parts - 1) / parts : steps;
    for (int64_t k0 = 0; k0 < steps; k0 += most, a.values += most * a.step, add = true)
      some_steps(a, m, std::min(most, steps - k0), b + k0 * columns * STEP<T>, columns, c, ldc, add);
  }
  return made;
}

// C (m, n rounded up to PITCH) = A B, or C += A B. Where k is not a multiple of STEP, the number after A's last is read
// too, and must be finite.
template <class T>
void gemm(Left<T> a, int64_t m, int64_t k, const T* b, int64_t n, float* c, int64_t ldc, bool add = false) {
  const int64_t size = column_size<T>(k), end = pitch(n);
  for (int64_t j = 0; j < end; j += PANEL) gemm_panel(a, m, k, b + j * size, std::min(PANEL, end - j), c + j, ldc, add);
}

// The same as it is read.
template <class T>
Products<T> products(Left<T> a, int64_t m, int64_t k, const T* b, int64_t n, float* c, int64_t ldc, Scratch&) {
  gemm(a, m, k, b, n, c, ldc);
  return {c, ldc};
}

// Two rows of n as one of pairs, the first in the lower half; where there is no second, zeros.
inline void interleave(const bf16* first, const bf16* second, int64_t n, bf16* pairs) {
  auto* a = reinterpret_cast<const uint16_t*>(first);
  auto* b = reinterpret_cast<const uint16_t*>(second);
  auto* to = reinterpret_cast<uint32_t*>(pairs);
  if (b)
    for (int64_t j = 0; j < n; ++j) to[j] = a[j] | uint32_t(b[j]) << 16;
  else
    for (int64_t j = 0; j < n; ++j) to[j] = a[j];
}

template <class T>
struct PackArguments {
  int64_t threads;      // that may run
  T* packed;            // pitch(n) * column_size(k) numbers
  const float* weight;  // (n, k), or where `transposed` (k, n)
  int64_t rows;         // of weight
  int64_t width;        // its columns
  int64_t transposed;
};

// A parameter, or its transpose, as B.
template <class T>
void pack(const PackArguments<T>& a) {
  const int64_t k = a.transposed ? a.rows : a.width, n = a.transposed ? a.width : a.rows;
  const int64_t by_k = a.transposed ? n : 1, by_n = a.transposed ? 1 : k, depth = round_up(k, STEP<T>), end = pitch(n);
  parallel_for(a.threads, (end + PANEL - 1) / PANEL, [&](int64_t i) {
    const int64_t start = i * PANEL, columns = std::min(PANEL, end - start), real = std::min(columns, n - start);
    T* panel = a.packed + start * depth;
    std::fill(panel, panel + columns * depth, T(0.0f));
    for (int64_t r = 0; r < k; ++r)
      for (int64_t j = 0; j < real; ++j)
        panel[r / STEP<T> * STEP<T> * columns + j * STEP<T> + r % STEP<T>] = T(a.weight[r * by_k + (start + j) * by_n]);
  });
}

}  // namespace astroco
