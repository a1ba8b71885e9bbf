// The gradient of a matrix, y^T x, summed over all real rows of y (N, n) and x (N, k).
#pragma once

#include "rows.h"
#include "transpose.h"

namespace astroco {

// Rows of y that are multiplied before anything is added to the sums, and columns: small enough for a core's own cache.
constexpr int64_t CHUNK = 256;
constexpr int64_t BLOCK_N = 16 * ROWS;

// How many columns of y make one task, so that there are some tasks for each thread.
inline int64_t block_columns(int64_t n, int64_t threads) {
  return std::min(BLOCK_N, round_up((n + 4 * threads - 1) / (4 * threads), 2 * BLOCK_ROWS));
}

// A block of y as the left factor's transpose.
template <class T>
Left<T> transposed(const T* y, int64_t ld, int64_t rows, int64_t n, Scratch& scratch) {
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<T, bf16>) {  // tiles are loaded from row-major memory only
    const int64_t row = spaced(rows);
    T* across = scratch.take<T>(n * row);
    transpose(y, ld, rows, n, across, row);
    return {across, row};
  }
#endif
  T* steps = scratch.take<T>(round_up(rows, STEP<T>) * n);
  for (int64_t r = 0; r < rows; r += STEP<T>)
    if constexpr (STEP<T> == 1)
      std::copy_n(y + r * ld, n, steps + r * n);
    else
      interleave(y + r * ld, r + 1 < rows ? y + (r + 1) * ld : nullptr, n, steps + r * n);
  return {steps, STEP<T>, STEP<T> * n};
}

// Packs rows (m, k) of x as those from `first` on of a right factor (depth, k); `first` is a multiple of STEP.
template <class T, class X>
void pack_rows(const X* x, int64_t ld, int64_t m, int64_t k, T* packed, int64_t first, int64_t depth) {
  const int64_t end = pitch(k), all = round_up(depth, STEP<T>);
  Scratch scratch;
  T* lines = scratch.take<T>(STEP<T> * end);
  for (int64_t r = 0; r < m; r += STEP<T>) {
    const bool whole = r + STEP<T> <= m;
    for (int64_t s = 0; s < (whole ? STEP<T> : 1); ++s) {
      if constexpr (std::is_same_v<T, X>) {
        std::copy_n(x + (r + s) * ld, k, lines + s * end);
        std::fill(lines + s * end + k, lines + (s + 1) * end, T(0.0f));
      } else {
        to_half(x + (r + s) * ld, k, lines + s * end);
      }
    }
    for (int64_t j = 0; j < end; j += PANEL) {
      const int64_t n = std::min(PANEL, end - j);
      T* to = packed + j * all + (first + r) * n;
      if constexpr (STEP<T> == 1)
        std::copy_n(lines + j, n, to);
      else
        interleave(lines + j, whole ? lines + end + j : nullptr, n, to);
    }
  }
}

// sums (n, pitch(k)) += y^T x, x packed as (rows, k).
template <class T>
void add_products(const T* y, int64_t ldy, int64_t rows, int64_t n, const T* x, int64_t k, float* sums) {
  const int64_t end = pitch(k), depth = round_up(rows, STEP<T>);
  for (int64_t r = 0; r < rows; r += CHUNK) {
    Scratch scratch;
    const int64_t some = std::min(CHUNK, rows - r);
    Left<T> left = transposed(y + r * ldy, ldy, some, n, scratch);
    for (int64_t j = 0; j < end; j += PANEL) {
      const int64_t columns = std::min(PANEL, end - j);
      gemm_panel(left, n, some, x + j * depth + r * columns, columns, sums + j, end, true);
    }
  }
}

template <class T>
struct WeightGradientArguments {
  int64_t threads;         // that may run
  float* d_weight;         // (n, k)
  const T* y;              // half rows (N, pitch(n))
  const T* x;              // half rows (N, pitch(k))
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t n;
  int64_t k;
};

template <class T>
void weight_gradient(const WeightGradientArguments<T>& a) {
  constexpr int64_t MOST = 4 * CHUNK;
  const int64_t n = a.n, k = a.k, ldy = pitch(n), ldx = pitch(k);
  const int64_t each = block_columns(n, a.threads), blocks = (n + each - 1) / each;
  Scratch shared;
  float* sums = shared.take<float>(n * ldx);
  T* packed = shared.take<T>(MOST * ldx);
  std::fill(sums, sums + n * ldx, 0.0f);
  for (auto run : runs(Windows(a)))
    for (int64_t done = 0; done < run.count; done += MOST) {
      const int64_t first = run.first + done, m = std::min(MOST, run.count - done);
      auto work = cut({{first, m}}, a.threads, BLOCK_N);
      parallel_for(a.threads, work.size(), [&](int64_t i) {
        pack_rows(a.x + work[i].first * ldx, ldx, work[i].count, k, packed, work[i].first - first, m);
      });
      parallel_for(a.threads, blocks, [&](int64_t i) {
        const int64_t n0 = i * each;
        add_products(a.y + first * ldy + n0, ldy, m, std::min(each, n - n0), packed, k, sums + n0 * ldx);
      });
    }
  for (int64_t i = 0; i < n; ++i) std::copy_n(sums + i * ldx, k, a.d_weight + i * k);
}

}  // namespace astroco
