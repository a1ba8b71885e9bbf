// Back through sublayer c, row tile by row tile. Of the products of W_val and W_gate forward has kept the results.
#pragma once

#include "feed_forward.h"

namespace astroco {

struct GateSums {
  double *val, *gate;
};

// One row of a panel of dh, with v and g: h again, and the gradients of v and g.
template <class T>
inline void gate_row_backward(
    const float* dh, const T* v, const T* g, int64_t columns, T* h, T* dv, T* dg, GateSums sums) {
  for (int64_t j = 0; j < columns; j += 2 * W) {
    Two up = load2(dh + j), value = load2(v + j), gate = load2(g + j), d_value, d_gate, product;
    auto one = [](Vec up, Vec v, Vec g, Vec& dv, Vec& dg, Vec& h) {
      Normal n = normal<T>(v);
      Vec s = sigmoid<T>(g), gelu = v * n.cdf;
      h = gelu * s;
      dv = up * s * at::vec::fmadd(v, n.pdf, n.cdf);
      dg = up * h * (Vec(1.0f) - s);
    };
    one(up.a, value.a, gate.a, d_value.a, d_gate.a, product.a);
    one(up.b, value.b, gate.b, d_value.b, d_gate.b, product.b);
    store2(h + j, product);
    store2(dv + j, d_value);
    store2(dg + j, d_gate);
    add_to(sums.val + j, d_value, 2 * W);
    add_to(sums.gate + j, d_gate, 2 * W);
  }
}

// dx (N, D); half rows d_o (N, P), h (N, pitch(F)) and d (N, 2, pitch(F)), of v and g, for the gradients of matrices;
// those of the vectors: d_bias (2, pitch(F)), d_end (3, D) of b_out, gain and shift. w_out is packed as (D, F), w_in, W_val
// over W_gate with pitch(F) rows each, as (2 pitch(F), D).
template <class T>
void feed_forward_backward(
    int64_t threads, float* dx, T* d_o, T* h, T* d, float* d_bias, float* d_end, const float* dy, const float* x,
    const T* kept, const T* product, const float* stats, const int64_t* windows, int64_t batch, int64_t rows,
    int64_t width, int64_t hidden, const T* w_out, const T* w_in, const float* b_out, const float* gain,
    const int64_t* seed, int64_t salt, double drop) {
  Windows all(windows, batch, rows);
  const Ending end{b_out, gain, nullptr, 0.0, width, Dropout(seed, salt, drop)};
  const int64_t p = pitch(width), f = pitch(hidden), depth = round_up(width, STEP<T>);
  auto work = tiles(all, threads, FEED_FORWARD_TILE);
  Scratch shared;
  Sums vectors(work.size(), 3 * p, shared), biases(work.size(), 2 * f, shared);
  parallel_for(threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    float *dz = scratch.take<float>(m * width), *dh = scratch.take<float>(m * PANEL), *back = scratch.take<float>(m * p);
    double* sums = vectors.of(i);
    for (int64_t r = 0, row = first; r < m; ++r, ++row)
      end.backward(dy + row * width, product + row * p, x + row * width, {stats[2 * row], stats[2 * row + 1]}, row,
                   dz + r * width, d_o + row * p, {sums, sums + p, sums + 2 * p});
    for (int64_t j = 0; j < f; j += PANEL) {
      const int64_t n = std::min(PANEL, f - j);
      gemm_panel(Left<T>{d_o + first * p, p}, m, width, w_out + j * depth, n, dh, PANEL);
      for (int64_t r = 0, row = first; r < m; ++r, ++row)
        gate_row_backward(dh + r * PANEL, kept + row * 2 * f + j, kept + row * 2 * f + f + j, n, h + row * f + j,
                          d + row * 2 * f + j, d + row * 2 * f + f + j, {biases.of(i) + j, biases.of(i) + f + j});
    }
    gemm(Left<T>{d + first * 2 * f, 2 * f}, m, 2 * f, w_in, width, back, p);
    for (int64_t r = 0; r < m; ++r)
      columns(width, [&](int64_t j, int64_t n) {
        store2(dx + (first + r) * width + j, load2(back + r * p + j) + load2(dz + r * width + j, n), n);
      });
  });
  clear_others(all, dx, width);
  biases.total(0, 2 * f, d_bias);
  for (int64_t part = 0; part < 3; ++part) vectors.total(part * p, width, d_end + part * width);
}

}  // namespace astroco
