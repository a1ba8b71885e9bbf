// Back through sublayer b, in two passes, because BatchNorm needs two sums over all rows before it can give a single
// row.
#pragma once

#include "convolution.h"

namespace astroco {

// The first pass, row tile by row tile: from dy to the gradient of BatchNorm's result, and the sums.
template <class T>
struct ConvolutionBackwardOutArguments {
  int64_t threads;          // that may run
  float* dz;                // (N, D), the residual's share of dx
  T* d_o;                   // (N, P); of d_o and s W_out's gradient is made
  T* s;                     // (N, P)
  T* dn;                    // (N, P), the gradient of BatchNorm's result
  float* d_vectors;         // (3, D), of b_out, gain_out and shift_out
  float* d_batch_norm;      // (3, D), of scale and offset, and what rounding took from the latter
  const float* dy;          // (N, D)
  const float* x;           // (N, D)
  const T* product;         // (N, P), what `convolution_out` gave
  const T* c;               // (N, P), the convolved rows
  const float* statistics;  // (4, P), BatchNorm's, as from `batch_norm_merge`
  const float* scale;       // (D,), BatchNorm's
  const float* offset;      // (D,), BatchNorm's
  const int64_t* windows;   // (2, B): each window's first row and length
  int64_t batch;            // B
  int64_t rows;             // N
  int64_t width;            // D
  const T* w_out;           // packed (D, D), not transposed
  const float* b_out;       // (D,)
  const float* gain_out;    // (D,), the last LayerNorm's
  double eps_out;
  const int64_t* seed;  // (1,), dropout's; null: nothing was dropped
  int64_t salt;
  double p;
};

template <class T>
void convolution_backward_out(const ConvolutionBackwardOutArguments<T>& a) {
  const Windows all(a);
  Scratch shared;
  const int64_t width = a.width, p = pitch(width);
  const Norm norm(a.statistics, a.scale, a.offset, width, shared);
  const Ending end{a.b_out, a.gain_out, nullptr, a.eps_out, width, Dropout(a.seed, a.salt, a.p)};
  auto work = tiles(all, a.threads, CONVOLUTION_TILE);
  Sums vectors(work.size(), 3 * p, shared), norms(work.size(), 2 * p, shared);
  parallel_for(a.threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    float* ds = scratch.take<float>(m * p);
    double* norm_sums = norms.of(i);
    TileSums sums(vectors.of(i), 3 * p, scratch);
    for (int64_t row = first; row < first + m; ++row)
      end.backward(a.dy + row * width, a.product + row * p, a.x + row * width, row, a.dz + row * width, a.d_o + row * p,
                   {sums, p});
    gemm(Left<T>{a.d_o + first * p, p}, m, width, a.w_out, width, ds, p);
    for (int64_t r0 = 0; r0 < m; r0 += 16)  // few enough for sums in float
      for (int64_t j = 0; j < p; j += 2 * W) {
        Two d_scale{Vec(0.0f), Vec(0.0f)}, d_offset = d_scale;
        for (int64_t r = r0; r < std::min(m, r0 + 16); ++r) {
          const int64_t at = (first + r) * p;
          const Two unit = norm.unit(a.c + at, j), n = norm.apply(unit, j), gate = map(n, sigmoid<T>);
          const Two slope = map(n, gate, [](Vec n, Vec g) { return at::vec::fmadd(n, (Vec(1.0f) - g) * g, g); });
          const Two d = load2(ds + r * p + j) * slope;
          store2(a.s + at + j, n * gate);
          store2(a.dn + at + j, d);
          d_scale = d_scale + d * unit;
          d_offset = d_offset + d;
        }
        add_to(norm_sums + j, d_scale, 2 * W);
        add_to(norm_sums + p + j, d_offset, 2 * W);
      }
  });
  for (int64_t part = 0; part < 3; ++part) vectors.total(part * p, width, a.d_vectors + part * width);
  std::vector<double> totals(2 * p, 0.0);
  norms.add_to(totals);
  for (int64_t j = 0; j < width; ++j) {
    a.d_batch_norm[j] = float(totals[j]);
    a.d_batch_norm[width + j] = float(totals[p + j]);
    a.d_batch_norm[2 * width + j] = float(totals[p + j] - double(a.d_batch_norm[width + j]));
  }
}

// The second pass, window by window: from the gradient of BatchNorm's result to dx.
template <class T>
struct ConvolutionBackwardInArguments {
  int64_t threads;            // that may run
  float* dx;                  // (N, D)
  T* d_kept;                  // (N, 2, P), of values and gates; of it and `normed` W_in's gradient is made
  T* normed;                  // (N, P), the first LayerNorm's rows
  float* d_taps;              // (P / PITCH, K rounded up to SPAN, PITCH)
  float* d_bias;              // (2, P), of b_val and b_gate
  float* d_vectors;           // (2, D), of gain_in and shift_in
  const T* dn;                // (N, P), what the first pass gave
  const T* c;                 // (N, P), the convolved rows
  const float* statistics;    // (4, P), BatchNorm's, as from `batch_norm_merge`
  const float* scale;         // (D,), BatchNorm's
  const float* count;         // (1,), the rows that the statistics are of, on all ranks
  const float* d_batch_norm;  // (3, D), over all ranks; null: the statistics do not depend on c
  const T* kept;              // (N, 2, P), values and gates
  const float* x;             // (N, D)
  const float* stats_in;      // (N, 2), the first LayerNorm's mean and rstd
  const float* dz;            // (N, D), the residual's share of dx
  const int64_t* windows;     // (2, B): each window's first row and length
  int64_t batch;              // B
  int64_t rows;               // N
  int64_t width;              // D
  const T* w_in;              // packed (2 P, D), W_in's values over its gates
  const float* reversed;      // (P / PITCH, K rounded up to SPAN, PITCH), the taps from the last to the first
  int64_t kernel;             // K
  const float* gain_in;       // (D,), the first LayerNorm's
  const float* shift_in;      // (D,)
};

template <class T>
struct ConvolutionBackwardIn {
  const ConvolutionBackwardInArguments<T>& a;
  Norm norm;  // without its offset
  Taps taps, reversed;

  ConvolutionBackwardIn(const ConvolutionBackwardInArguments<T>& a, Scratch& scratch)
      : a(a),
        norm(a.statistics, a.scale, a.scale, a.width, scratch),
        taps(nullptr, a.kernel, Taps::before_of(a.kernel)),
        reversed(a.reversed, a.kernel, a.kernel - 1 - taps.before) {}

  // One group of a window: gradients of the convolved rows dc and the gated rows u, one row a time step.
  void rows(Tile window, int64_t group, float* dc, float* u) const {
    const int64_t width = a.width, p = pitch(width);
    for (int64_t j = 0; j < PITCH; j += 2 * W) {
      const int64_t column = group * PITCH + j;
      const Two factor = load2(norm.rstd + column) * load2(norm.scale + column);
      alignas(64) float means[3][2 * W] = {};  // of what d_batch_norm sums; the level in two numbers
      for (int64_t i = 0; a.d_batch_norm && i < 2 * W && column + i < width; ++i) {
        const float* sum = a.d_batch_norm + column + i;
        const double level = (double(sum[width]) + double(sum[2 * width])) / *a.count;
        means[0][i] = *sum / *a.count;
        means[1][i] = float(level);
        means[2][i] = float(level - means[1][i]);
      }
      const Two tilt = load2(means[0]), level = load2(means[1]), rest = load2(means[2]);
      for (int64_t t = 0; t < window.count; ++t) {
        const int64_t row = window.first + t;
        const Two given = load2(a.dn + row * p + column), unit = norm.unit(a.c + row * p, column);
        store2(dc + t * PITCH + j, (given - level - (unit * tilt + rest)) * factor);
        const Two value = load2(a.kept + row * 2 * p + column), gate = load2(a.kept + row * 2 * p + p + column);
        store2(u + t * PITCH + j, map(value, gate, [](Vec v, Vec g) { return v * sigmoid<T>(g); }));
      }
    }
  }

  // d_taps[k] += sum_t dc[t] u[t + k], (taps.count, PITCH); rows of dc beyond the window are zero.
  void tap_gradient(const float* dc, const float* u, int64_t length, double* d_taps) const {
    constexpr int64_t MOST = 64;  // rows that are summed in float
    for (int64_t k = 0; k < taps.count; k += SPAN)
      for (int64_t j = 0; j < PITCH; j += 2 * W)
        for (int64_t t0 = 0; t0 < length; t0 += MOST) {
          Vec sums[2][SPAN];
          for (int half = 0; half < 2; ++half) {
            for (auto& sum : sums[half]) sum = Vec(0.0f);
            const int64_t column = j + half * W;
            for (int64_t t = t0; t < std::min(length, t0 + MOST); t += REACH)
              correlate(sums[half], u + (t + k) * PITCH + column, dc + t * PITCH + column);
          }
          for (int64_t i = 0; i < SPAN; ++i) add_to(d_taps + (k + i) * PITCH + j, {sums[0][i], sums[1][i]}, 2 * W);
        }
  }

  // Gradients of values and gates from that of u, and their sums, d_bias (2, P).
  void gates(Tile window, int64_t group, const float* du, double* d_bias) const {
    const int64_t p = pitch(a.width);
    for (int64_t r0 = 0; r0 < window.count; r0 += 16)  // few enough for sums in float
      for (int64_t j = 0; j < PITCH; j += 2 * W) {
        const int64_t column = group * PITCH + j;
        Two all_v{Vec(0.0f), Vec(0.0f)}, all_g = all_v;
        for (int64_t t = r0; t < std::min(window.count, r0 + 16); ++t) {
          const int64_t at = (window.first + t) * 2 * p + column;
          const Two gate = map(load2(a.kept + at + p), sigmoid<T>), dv = load2(du + t * PITCH + j) * gate;
          const Two dg = dv * load2(a.kept + at) * map(gate, [](Vec g) { return Vec(1.0f) - g; });
          store2(a.d_kept + at, dv);
          store2(a.d_kept + at + p, dg);
          all_v = all_v + dv;
          all_g = all_g + dg;
        }
        add_to(d_bias + column, all_v, 2 * W);
        add_to(d_bias + p + column, all_g, 2 * W);
      }
  }

  void group(Tile window, int64_t g, double* d_taps, double* d_bias) const {
    Scratch scratch;
    const int64_t length = window.count, total = taps.rows(length);
    float *dc = scratch.take<float>(total * PITCH), *u = scratch.take<float>(total * PITCH);
    const Groups around_dc{dc, total}, around_u{u, total};
    around_dc.clear_around(PITCH, reversed.before, length);
    around_u.clear_around(PITCH, taps.before, length);
    float* first_dc = dc + reversed.before * PITCH;
    rows(window, g, first_dc, u + taps.before * PITCH);
    tap_gradient(first_dc, u, length, d_taps + g * taps.count * PITCH);
    depthwise(dc, reversed.of(g), taps.count, 0, length,
              [&](int64_t t, int64_t j, Two sum) { store2(u + t * PITCH + j, sum); });
    gates(window, g, u, d_bias);
  }

  void tile(Tile tile, double* d_vectors) const {
    Scratch scratch;
    const int64_t width = a.width, p = pitch(width), m = tile.count;
    float *back = scratch.take<float>(m * p), *line = scratch.take<float>(p);
    gemm(Left<T>{a.d_kept + tile.first * 2 * p, 2 * p}, m, 2 * p, a.w_in, width, back, p);
    TileSums sums(d_vectors, 2 * p, scratch);
    for (int64_t r = 0, row = tile.first; r < m; ++r, ++row) {
      float* d_gain = sums.next();
      const float* x = a.x + row * width;
      const Statistics s = Statistics::of(a.stats_in, row);
      normalise<1>(x, width, {s}, a.gain_in, a.shift_in, width, line, p);
      to_half(line, width, a.normed + row * p);
      normalise_backward(back + r * p, x, s, a.gain_in, width, line, d_gain, d_gain + p);
      columns(width, [&](int64_t j, int64_t n) {
        store2(a.dx + row * width + j, load2(line + j, n) + load2(a.dz + row * width + j, n), n);
      });
    }
  }
};

template <class T>
void convolution_backward_in(const ConvolutionBackwardInArguments<T>& a) {
  const Windows all(a);
  Scratch shared;
  const ConvolutionBackwardIn<T> op(a, shared);
  const int64_t width = a.width, p = pitch(width), taps = op.taps.count;
  Shares shares(a.threads, all);
  Sums tap_sums(shares.count(), taps * p, shared), biases(shares.count(), 2 * p, shared);
  Sums vectors(shares.count() * shares.most(), 2 * p, shared);
  shares.run(0, [&](Team& team, int64_t i, int64_t share, char*) {
    const Tile window{all.starts[i], all.lengths[i]};
    for (int64_t g = team.rank; g < p / PITCH; g += team.size)
      op.group(window, g, tap_sums.of(share), biases.of(share));
    team.wait();
    for_tiles(team, window.count, CONVOLUTION_TILE, [&](int64_t first, int64_t m) {
      op.tile({window.first + first, m}, vectors.of(share * shares.most() + team.rank));
    });
  });
  clear_others(all, a.dx, width);
  tap_sums.total(0, taps * p, a.d_taps);
  biases.total(0, 2 * p, a.d_bias);
  for (int64_t part = 0; part < 2; ++part) vectors.total(part * p, width, a.d_vectors + part * width);
}

}  // namespace astroco
