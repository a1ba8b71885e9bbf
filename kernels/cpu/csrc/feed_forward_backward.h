// Back through sublayer c. Forward has kept the products of W_val and W_gate.
//
// Rows are done chunk by chunk. In a chunk everything but the gradients of the matrices is computed first, tile by
// tile; then those gradients, block by block. What passes from one step to the other is as small as a chunk and stays
// in the shared cache.
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
struct FeedForwardBackwardArguments {
  int64_t threads;         // that may run
  float* dx;               // (N, D)
  float* d_weights;        // (3, pitch(F), P), of W_out's transpose, W_val and W_gate
  float* d_bias;           // (2, pitch(F)), of b_val and b_gate
  float* d_vectors;        // (3, D), of b_out, gain and shift
  const float* dy;         // (N, D)
  const float* x;          // (N, D); the arguments that follow, up to `windows`, are what forward kept
  const T* kept;           // (2, pitch(F), N)
  const T* product;        // (N, P)
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  const T* w_out;          // packed (D, F)
  const T* w_in;           // packed (2 pitch(F), D): W_val over W_gate
  const float* b_out;      // (D,)
  const float* gain;       // (D,), LayerNorm's
  int64_t hidden;          // F
  double eps;              // LayerNorm's
  const int64_t* seed;     // (1,), dropout's; null: nothing was dropped
  int64_t salt;
  double p;
};

template <class T>
struct FeedForwardBackward {
  static constexpr int64_t CHUNK_ROWS = 1024;

  const FeedForwardBackwardArguments<T>& a;
  Ending end;

  // What a chunk's tiles leave behind: hidden rows (n, 3, pitch(F)) of h, dv and dg; x and d_o packed as (n, D).
  struct Chunk {
    int64_t first, rows;
    T *hidden, *x, *d_o;
  };

  void tile(Tile tile, const Chunk& chunk, double* d_vectors, double* d_bias) const {
    Scratch scratch;
    const int64_t width = a.width, p = pitch(width), f = pitch(a.hidden), m = tile.count;
    const int64_t depth = round_up(width, STEP<T>);
    const Kept<const T> kept{a.kept, a.rows};
    float *dz = scratch.take<float>(m * width), *dh = scratch.take<float>(m * PANEL),
          *back = scratch.take<float>(m * p);
    T* d_o = scratch.take<T>(m * p);
    TileSums vectors(d_vectors, 3 * p, scratch);
    for (int64_t r = 0, row = tile.first; r < m; ++r, ++row)
      end.backward(a.dy + row * width, a.product + row * p, a.x + row * width, row, dz + r * width, d_o + r * p,
                   {vectors, p});
    T* rows = chunk.hidden + (tile.first - chunk.first) * 3 * f;
    for (int64_t j = 0; j < f; j += PANEL) {
      const int64_t n = std::min(PANEL, f - j);
      gemm_panel(Left<T>{d_o, p}, m, width, a.w_out + j * depth, n, dh, PANEL);
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
    gemm(Left<T>{rows + f, 3 * f}, m, 2 * f, a.w_in, width, back, p);
    for (int64_t r = 0; r < m; ++r)
      columns(width, [&](int64_t j, int64_t n) {
        store2(a.dx + (tile.first + r) * width + j, load2(back + r * p + j) + load2(dz + r * width + j, n), n);
      });
    const int64_t at = tile.first - chunk.first;
    pack_rows(a.x + tile.first * width, width, m, width, chunk.x, at, chunk.rows);
    pack_rows(d_o, p, m, width, chunk.d_o, at, chunk.rows);
  }

  // Adds a chunk's share to some rows of (3, pitch(F), pitch(D)): h^T d_o, dv^T x, dg^T x. A part has blocks of `each`.
  void block(int64_t i, int64_t each, const Chunk& chunk) const {
    const int64_t f = pitch(a.hidden), per_part = (f + each - 1) / each, part = i / per_part;
    const int64_t n0 = i % per_part * each, n = std::min(each, f - n0), column = part * f + n0;
    add_products(chunk.hidden + column, 3 * f, chunk.rows, n, part == 0 ? chunk.d_o : chunk.x, a.width,
                 a.d_weights + column * pitch(a.width));
  }
};

template <class T>
void feed_forward_backward(const FeedForwardBackwardArguments<T>& a) {
  using Op = FeedForwardBackward<T>;
  const Windows all(a);
  const Op op{a, {a.b_out, a.gain, nullptr, a.eps, a.width, Dropout(a.seed, a.salt, a.p)}};
  const int64_t threads = a.threads, p = pitch(a.width), f = pitch(a.hidden), each = block_columns(3 * f, threads);
  const int64_t most = std::max(Op::CHUNK_ROWS, threads * FEED_FORWARD_TILE);
  Scratch shared;
  typename Op::Chunk chunk{0, 0, shared.take<T>(most * 3 * f), shared.take<T>(most * p), shared.take<T>(most * p)};
  std::fill(a.d_weights, a.d_weights + 3 * f * p, 0.0f);
  std::vector<double> d_vectors(3 * p, 0.0), d_bias(2 * f, 0.0);
  for (auto run : runs(all))
    for (int64_t done = 0; done < run.count; done += most) {
      chunk.first = run.first + done;
      chunk.rows = std::min(most, run.count - done);
      auto work = cut({{chunk.first, chunk.rows}}, threads, FEED_FORWARD_TILE);
      Scratch local;
      Sums vectors(work.size(), 3 * p, local), biases(work.size(), 2 * f, local);
      parallel_for(threads, work.size(), [&](int64_t i) { op.tile(work[i], chunk, vectors.of(i), biases.of(i)); });
      parallel_for(threads, 3 * ((f + each - 1) / each), [&](int64_t i) { op.block(i, each, chunk); });
      vectors.add_to(d_vectors);
      biases.add_to(d_bias);
    }
  clear_others(all, a.dx, a.width);
  std::copy(d_bias.begin(), d_bias.end(), a.d_bias);
  for (int64_t part = 0; part < 3; ++part)
    std::copy_n(d_vectors.begin() + part * p, a.width, a.d_vectors + part * a.width);
}

}  // namespace astroco
