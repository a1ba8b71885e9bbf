// Sublayer c: LayerNorm(x + Dropout(W_out(GELU(W_val x) sigmoid(W_gate x)))), row tile by row tile: what lies between x
// and y stays in a core's cache.
#pragma once

#include "rows.h"

namespace astroco {

// Rows of a tile: many enough that the weights, which every tile reads again, cost little beside the products. Those of
// int8 are half as large as BFloat16's, and those of float32 twice: there, a window of 200 points is one tile.
constexpr int64_t FEED_FORWARD_TILE = round_up(20 * ROWS, BLOCK_ROWS),
                  INT8_FEED_FORWARD_TILE = round_up(10 * ROWS, BLOCK_ROWS),
                  FLOAT_FEED_FORWARD_TILE = round_up(36 * ROWS, BLOCK_ROWS);

// GELU(v + b_val) * sigmoid(g + b_gate) for R rows of a panel's products from r on, to rows of h. v and g with their
// biases are kept where wanted, 2 `columns` from row to row, g after v.
template <int R, class T, class H = Half<T>>
inline void gate_rows(Products<T> v, Products<T> g, int64_t r, const float* b_val, const float* b_gate, int64_t columns,
                      H* h, int64_t ldh, H* keep) {
  const Gelu<T> gelu;
  const Sigmoid<T> sigmoid;
  for (int64_t j = 0; j < columns; j += 2 * W) {
    const Two by_val = load2(b_val + j), by_gate = load2(b_gate + j);
    for (int i = 0; i < R; ++i) {
      Two value = v(r + i, j, by_val), gate = g(r + i, j, by_gate);
      if (keep) {
        store2(keep + 2 * i * columns + j, value);
        store2(keep + (2 * i + 1) * columns + j, gate);
      }
      store2(h + i * ldh + j, map(value, gate, [&](Vec v, Vec g) { return gelu(v) * sigmoid(g); }));
    }
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

template <class T, class H = Half<T>>
struct FeedForwardArguments {
  int64_t threads;         // that may run
  float* y;                // (N, D), the sublayer's output
  H* kept;                 // (2, pitch(F), N), where `keep`: v and g as `Kept` orders them
  H* product;              // (N, P), where `keep`: W_out's product, half rows
  const float* x;          // (N, D)
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  const T* w_val;          // packed (D, F)
  const T* w_gate;         // packed (D, F)
  const T* w_out;          // packed (F, D)
  const float* b_val;      // (pitch(F),)
  const float* b_gate;     // (pitch(F),)
  const float* b_out;      // (D,)
  const float* gain;       // (D,), LayerNorm's
  const float* shift;      // (D,)
  int64_t hidden;          // F
  double eps;              // LayerNorm's
  const int64_t* seed;     // (1,), dropout's; null: nothing is dropped
  int64_t salt;
  double p;
  int64_t keep;  // whether backward will follow
};

template <class T>
struct FeedForward {
  const FeedForwardArguments<T>& a;
  Ending end;

  void tile(Tile tile) const {
    Scratch scratch;
    const int64_t width = a.width, p = pitch(width), f = pitch(a.hidden), m = tile.count;
    using H = Half<T>;
    const Kept<H> kept{a.keep ? a.kept : nullptr, a.rows};
    const Left<T> left = as_left<T>(a.x + tile.first * width, width, width, m, scratch);
    H* h = scratch.take<H>(m * f);
    float *v = scratch.take<float>(m * PANEL), *g = scratch.take<float>(m * PANEL), *o = scratch.take<float>(m * p);
    const int64_t size = column_size<T>(width);
    for (int64_t j = 0; j < f; j += PANEL) {
      const int64_t n = std::min(PANEL, f - j);
      by_blocks<T>(m, [&](int64_t first, int64_t some) {
        const auto values = gemm_panel(left + first, some, width, a.w_val + j * size, n, v, PANEL);
        const auto gates = gemm_panel(left + first, some, width, a.w_gate + j * size, n, g, PANEL);
        by_rows(some, [&](auto count, int64_t r) {
          gate_rows<count>(values, gates, r, a.b_val + j, a.b_gate + j, n, h + (first + r) * f + j, f,
                           kept.of(tile.first + first + r, j, n));
        });
      });
    }
    const auto made = products(as_left<T>(h, f, a.hidden, m, scratch), m, a.hidden, a.w_out, width, o, p, scratch);
    for (int64_t r = 0; r < (a.keep ? m : 0); ++r) to_half(o + r * p, p, a.product + (tile.first + r) * p);
    end.forward(made, tile, a.x, a.y);
  }
};

template <class T>
void feed_forward(const FeedForwardArguments<T>& a) {
  const Windows all(a);
  const FeedForward<T> op{a, {a.b_out, a.gain, a.shift, a.eps, a.width, Dropout(a.seed, a.salt, a.p)}};
  const int64_t most = std::is_same_v<T, int8_t>  ? INT8_FEED_FORWARD_TILE
                       : std::is_same_v<T, float> ? FLOAT_FEED_FORWARD_TILE
                                                  : FEED_FORWARD_TILE;
  auto work = tiles(all, a.threads, most);
  parallel_for(a.threads, work.size(), [&](int64_t i) { op.tile(work[i]); });
  clear_others(all, a.y, a.width);
}

}  // namespace astroco
