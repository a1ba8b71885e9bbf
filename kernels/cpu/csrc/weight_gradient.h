// The gradient of a matrix: out (n, k) = y^T x over all real rows, y (N, n) and x (N, k).
#pragma once

#include "rows.h"

namespace astroco {

// Rows of y and x that are multiplied before anything is added to out; with a block of out they fill a core's cache.
constexpr int64_t CHUNK = 256;
constexpr int64_t BLOCK_N = 16 * ROWS;
constexpr int64_t BLOCK_K = 256;

// A block of y, `rows` rows from `first` on and n columns, as the left factor's transpose.
template <class T>
Left<T> transposed(const T* y, int64_t ld, int64_t rows, int64_t n, Scratch& scratch) {
  if constexpr (STEP<T> == 1) {
    return {y, 1, ld};
  } else {
    T* pairs = scratch.take<T>(round_up(rows, 2) * n);
    for (int64_t r = 0; r < rows; r += 2) interleave(y + r * ld, r + 1 < rows ? y + (r + 1) * ld : nullptr, n, pairs + r * n);
    return {pairs, 2, 2 * n};
  }
}

// x (rows, k) packed as B.
template <class T, class X>
const T* packed_rows(const X* x, int64_t ld, int64_t rows, int64_t k, Scratch& scratch) {
  const int64_t depth = round_up(rows, STEP<T>), end = pitch(k);
  T* packed = scratch.take<T>(depth * end);
  T* pair = scratch.take<T>(2 * end);
  for (int64_t r = 0; r < rows; r += STEP<T>) {
    const T* lines[2] = {nullptr, nullptr};
    for (int64_t s = 0; s < STEP<T> && r + s < rows; ++s) {
      const X* row = x + (r + s) * ld;
      if constexpr (std::is_same_v<T, X>) {
        std::copy(row, row + k, pair + s * end);
        std::fill(pair + s * end + k, pair + (s + 1) * end, T(0.0f));
      } else {
        to_half(row, k, pair + s * end);
      }
      lines[s] = pair + s * end;
    }
    for (int64_t j = 0; j < end; j += PANEL) {
      const int64_t n = std::min(PANEL, end - j);
      T* to = packed + j * depth + r * n;
      if constexpr (STEP<T> == 1)
        std::copy(lines[0] + j, lines[0] + j + n, to);
      else
        interleave(lines[0] + j, lines[1] ? lines[1] + j : nullptr, n, to);
    }
  }
  return packed;
}

template <class T, class X>
void weight_gradient_of(
    int64_t threads, float* out, const T* y, int64_t ldy, const X* x, int64_t ldx, const int64_t* windows, int64_t batch,
    int64_t rows, int64_t n, int64_t k) {
  std::vector<Tile> chunks;
  for (auto run : runs(Windows(windows, batch, rows)))
    for (int64_t first = 0; first < run.count; first += CHUNK)
      chunks.push_back({run.first + first, std::min(CHUNK, run.count - first)});
  const int64_t blocks_n = (n + BLOCK_N - 1) / BLOCK_N, blocks_k = (k + BLOCK_K - 1) / BLOCK_K;
  parallel_for(threads, blocks_n * blocks_k, [&](int64_t i) {
    const int64_t n0 = i / blocks_k * BLOCK_N, k0 = i % blocks_k * BLOCK_K;
    const int64_t n1 = std::min(BLOCK_N, n - n0), k1 = std::min(BLOCK_K, k - k0);
    Scratch scratch;
    float* block = scratch.take<float>(n1 * pitch(k1));
    std::fill(block, block + n1 * pitch(k1), 0.0f);
    for (auto chunk : chunks) {
      Scratch local;
      Left<T> left = transposed(y + chunk.first * ldy + n0, ldy, chunk.count, n1, local);
      const T* right = packed_rows<T>(x + chunk.first * ldx + k0, ldx, chunk.count, k1, local);
      gemm(left, n1, chunk.count, right, k1, block, pitch(k1), true);
    }
    for (int64_t r = 0; r < n1; ++r) std::copy_n(block + r * pitch(k1), k1, out + (n0 + r) * k + k0);
  });
}

// ldy, ldx: elements from row to row. x is in the compute type or, where x_is_float, float.
template <class T>
void weight_gradient(
    int64_t threads, float* out, const T* y, int64_t ldy, const void* x, int64_t ldx, int64_t x_is_float,
    const int64_t* windows, int64_t batch, int64_t rows, int64_t n, int64_t k) {
  if (x_is_float)
    weight_gradient_of(threads, out, y, ldy, static_cast<const float*>(x), ldx, windows, batch, rows, n, k);
  else
    weight_gradient_of(threads, out, y, ldy, static_cast<const T*>(x), ldx, windows, batch, rows, n, k);
}

}  // namespace astroco
