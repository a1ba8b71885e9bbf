// Back through sublayer c. Of the products of W_val and W_gate forward has kept the results.
//
// Rows are done in chunks: in each, tile by tile all but the gradients of the matrices, then those, block by block.
// What passes from one to the other is as small as a chunk and stays in the shared cache.
#pragma once

#include "feed_forward.h"
#include "weight_gradient.h"

namespace astroco {

struct GateSums {
  float *val, *gate;
};

// One row of a panel of dh, with v and g: h again, and the gradients of v and g.
template <class T>
inline void gate_row_backward(const float* dh, const T* v, const T* g, int64_t columns, T* h, T* dv, T* dg,
                              GateSums sums) {
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
    store2(sums.val + j, load2(sums.val + j) + d_value);
    store2(sums.gate + j, load2(sums.gate + j) + d_gate);
  }
}

template <class T>
struct FeedForwardBackward {
  static constexpr int64_t CHUNK_ROWS = 1024;

  Ending end;
  int64_t width, hidden;
  const T *w_out, *w_in;  // packed (D, F), and W_val over W_gate with pitch(F) rows each, (2 pitch(F), D)
  float* dx;
  const float *dy, *x;
  Kept<const T> kept;
  const T* product;
  const float* stats;

  // What a chunk's tiles leave behind: hidden rows (n, 3, pitch(F)) of h, dv and dg; x and d_o packed as (n, D).
  struct Chunk {
    int64_t first, rows;
    T *hidden, *x, *d_o;
  };

  void tile(Tile tile, const Chunk& chunk, double* d_end, double* d_bias) const {
    Scratch scratch;
    const int64_t p = pitch(width), f = pitch(hidden), m = tile.count, depth = round_up(width, STEP<T>);
    float *dz = scratch.take<float>(m * width), *dh = scratch.take<float>(m * PANEL),
          *back = scratch.take<float>(m * p);
    T* d_o = scratch.take<T>(m * p);
    for (int64_t r = 0, row = tile.first; r < m; ++r, ++row)
      end.backward(dy + row * width, product + row * p, x + row * width, {stats[2 * row], stats[2 * row + 1]}, row,
                   dz + r * width, d_o + r * p, {d_end, d_end + p, d_end + 2 * p});
    T* rows = chunk.hidden + (tile.first - chunk.first) * 3 * f;
    for (int64_t j = 0; j < f; j += PANEL) {
      const int64_t n = std::min(PANEL, f - j);
      gemm_panel(Left<T>{d_o, p}, m, width, w_out + j * depth, n, dh, PANEL);
      for (int64_t r0 = 0; r0 < m; r0 += 16) {  // few enough for sums in float
        float sums[2 * PANEL] = {};
        for (int64_t r = r0; r < std::min(m, r0 + 16); ++r) {
          const T* v = kept.of(tile.first + r, j, n);
          T* h = rows + r * 3 * f + j;
          gate_row_backward(dh + r * PANEL, v, v + n, n, h, h + f, h + 2 * f, {sums, sums + PANEL});
        }
        for (int64_t c = 0; c < n; ++c) d_bias[j + c] += sums[c], d_bias[f + j + c] += sums[PANEL + c];
      }
    }
    gemm(Left<T>{rows + f, 3 * f}, m, 2 * f, w_in, width, back, p);
    for (int64_t r = 0; r < m; ++r)
      columns(width, [&](int64_t j, int64_t n) {
        store2(dx + (tile.first + r) * width + j, load2(back + r * p + j) + load2(dz + r * width + j, n), n);
      });
    const int64_t at = tile.first - chunk.first;
    pack_rows(x + tile.first * width, width, m, width, chunk.x, at, chunk.rows);
    pack_rows(d_o, p, m, width, chunk.d_o, at, chunk.rows);
  }

  // Adds a chunk's share to some rows of (3, pitch(F), pitch(D)): h^T d_o, dv^T x, dg^T x. A part has blocks of `each`.
  void block(int64_t i, int64_t each, const Chunk& chunk, float* d_weights) const {
    const int64_t f = pitch(hidden), per_part = (f + each - 1) / each, part = i / per_part;
    const int64_t n0 = i % per_part * each, n = std::min(each, f - n0), column = part * f + n0;
    add_products(chunk.hidden + column, 3 * f, chunk.rows, n, part == 0 ? chunk.d_o : chunk.x, width,
                 d_weights + column * pitch(width));
  }
};

// dx (N, D); d_weights (3, pitch(F), pitch(D)): of W_out's transpose, W_val and W_gate; d_bias (2, pitch(F)) of b_val
// and b_gate; d_end (3, D) of b_out, gain and shift.
template <class T>
void feed_forward_backward(int64_t threads, float* dx, float* d_weights, float* d_bias, float* d_end, const float* dy,
                           const float* x, const T* kept, const T* product, const float* stats, const int64_t* windows,
                           int64_t batch, int64_t rows, int64_t width, int64_t hidden, const T* w_out, const T* w_in,
                           const float* b_out, const float* gain, const int64_t* seed, int64_t salt, double drop) {
  using Op = FeedForwardBackward<T>;
  Windows all(windows, batch, rows);
  const Op op{{b_out, gain, nullptr, 0.0, width, Dropout(seed, salt, drop)},
              width,
              hidden,
              w_out,
              w_in,
              dx,
              dy,
              x,
              {kept, rows},
              product,
              stats};
  const int64_t p = pitch(width), f = pitch(hidden), each = block_columns(3 * f, threads);
  const int64_t most = std::max(Op::CHUNK_ROWS, threads * FEED_FORWARD_TILE);
  Scratch shared;
  typename Op::Chunk chunk{0, 0, shared.take<T>(most * 3 * f), shared.take<T>(most * p), shared.take<T>(most * p)};
  std::fill(d_weights, d_weights + 3 * f * p, 0.0f);
  std::vector<double> end_sums(3 * p, 0.0), bias_sums(2 * f, 0.0);
  for (auto run : runs(all))
    for (int64_t done = 0; done < run.count; done += most) {
      chunk.first = run.first + done;
      chunk.rows = std::min(most, run.count - done);
      auto work = cut({{chunk.first, chunk.rows}}, threads, FEED_FORWARD_TILE);
      Scratch local;
      Sums ends(work.size(), 3 * p, local), biases(work.size(), 2 * f, local);
      parallel_for(threads, work.size(), [&](int64_t i) { op.tile(work[i], chunk, ends.of(i), biases.of(i)); });
      parallel_for(threads, 3 * ((f + each - 1) / each), [&](int64_t i) { op.block(i, each, chunk, d_weights); });
      ends.add_to(end_sums);
      biases.add_to(bias_sums);
    }
  clear_others(all, dx, width);
  std::copy(bias_sums.begin(), bias_sums.end(), d_bias);
  for (int64_t part = 0; part < 3; ++part) std::copy_n(end_sums.begin() + part * p, width, d_end + part * width);
}

}  // namespace astroco
