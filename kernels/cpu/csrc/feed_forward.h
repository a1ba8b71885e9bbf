// Sublayer c: LayerNorm(x + Dropout(W_out(GELU(W_val x) sigmoid(W_gate x)))), row tile by row tile: what lies between x
// and y stays in a core's cache.
#pragma once

#include "rows.h"

namespace astroco {

// Rows of a tile: many enough that the weights, which every tile reads again, cost little beside the products.
constexpr int64_t FEED_FORWARD_TILE = 16 * ROWS;

// GELU(v + b_val) * sigmoid(g + b_gate), one row of a panel's products; v and g with their biases are kept where
// wanted.
template <class T>
inline void gate_row(const float* v, const float* g, const float* b_val, const float* b_gate, int64_t columns, T* h,
                     T* keep_v, T* keep_g) {
  for (int64_t j = 0; j < columns; j += 2 * W) {
    Two value = load2(v + j) + load2(b_val + j), gate = load2(g + j) + load2(b_gate + j);
    if (keep_v) {
      store2(keep_v + j, value);
      store2(keep_g + j, gate);
    }
    store2(h + j, map(value, gate, [](Vec v, Vec g) { return gelu<T>(v) * sigmoid<T>(g); }));
  }
}

// v and g as backward wants them, 2 N pitch(F) numbers: panel by panel, in it row by row, v then g. Row by row alone, a
// panel's would lie a page apart, where nothing is read ahead.
template <class T>
struct Kept {
  T* values;  // null: not kept
  int64_t rows;

  // v of this row and the panel of n columns that starts at column j; g is n further on.
  T* of(int64_t row, int64_t j, int64_t n) const { return values ? values + 2 * (j * rows + row * n) : nullptr; }
};

template <class T>
struct FeedForward {
  int64_t width, hidden;            // D and F
  const T *w_val, *w_gate, *w_out;  // packed (D, F), (D, F), (F, D)
  const float *b_val, *b_gate;      // (pitch(F),)
  Ending end;

  // One tile. kept takes v and g, product half rows (N, P) what W_out gives, stats (N, 2); null: not wanted.
  void forward(Tile tile, const float* x, float* y, Kept<T> kept, T* product, float* stats) const {
    Scratch scratch;
    const int64_t p = pitch(width), f = pitch(hidden), m = tile.count;
    const float* x0 = x + tile.first * width;
    Left<T> a = as_left<T>(x0, width, m, scratch);
    T* h = scratch.take<T>(m * f);
    float *v = scratch.take<float>(m * PANEL), *g = scratch.take<float>(m * PANEL), *o = scratch.take<float>(m * p);
    const int64_t depth = round_up(width, STEP<T>);
    for (int64_t j = 0; j < f; j += PANEL) {
      const int64_t n = std::min(PANEL, f - j);
      gemm_panel(a, m, width, w_val + j * depth, n, v, PANEL);
      gemm_panel(a, m, width, w_gate + j * depth, n, g, PANEL);
      for (int64_t r = 0; r < m; ++r) {
        T* keep = kept.of(tile.first + r, j, n);
        gate_row(v + r * PANEL, g + r * PANEL, b_val + j, b_gate + j, n, h + r * f + j, keep,
                 keep ? keep + n : nullptr);
      }
    }
    gemm(Left<T>{h, f}, m, hidden, w_out, width, o, p);
    for (int64_t r = 0; r < m; ++r) {
      const int64_t row = tile.first + r;
      if (product) to_half(o + r * p, p, product + row * p);
      Statistics s = end.forward(o + r * p, x + row * width, row, y + row * width);
      if (stats) {
        stats[2 * row] = s.mean;
        stats[2 * row + 1] = s.rstd;
      }
    }
  }
};

template <class T>
void feed_forward(int64_t threads, float* y, T* kept, T* product, float* stats, const float* x, const int64_t* windows,
                  int64_t batch, int64_t rows, int64_t width, int64_t hidden, const T* w_val, const T* w_gate,
                  const T* w_out, const float* b_val, const float* b_gate, const float* b_out, const float* gain,
                  const float* shift, double eps, const int64_t* seed, int64_t salt, double p) {
  Windows all(windows, batch, rows);
  FeedForward<T> op{width, hidden, w_val,  w_gate,
                    w_out, b_val,  b_gate, {b_out, gain, shift, eps, width, Dropout(seed, salt, p)}};
  auto work = tiles(all, threads, FEED_FORWARD_TILE);
  parallel_for(threads, work.size(), [&](int64_t i) { op.forward(work[i], x, y, {kept, rows}, product, stats); });
  clear_others(all, y, width);
}

}  // namespace astroco
