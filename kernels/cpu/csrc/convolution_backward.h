// Back through sublayer b, in two passes: BatchNorm wants two sums over all rows before it can give a single one.
#pragma once

#include "convolution.h"

namespace astroco {

// The first pass, row tile by row tile: from dy to the gradient of BatchNorm's result, dn (N, P), and the sums; dz (N,
// D) is the residual's share of dx, d_o and s (N, P) make W_out's gradient; d_end (3, D) of b_out, gain and shift,
// d_norm (3, D) of scale, of offset, and what rounding took from the latter. w_out is packed as (D, D), not transposed.
template <class T>
void convolution_backward_out(int64_t threads, float* dz, T* d_o, T* s, T* dn, float* d_end, float* d_norm,
                              const float* dy, const float* x, const T* product, const float* stats, const T* c,
                              const float* statistics, const float* scale, const float* offset, const int64_t* windows,
                              int64_t batch, int64_t rows, int64_t width, const T* w_out, const float* b_out,
                              const float* gain, const int64_t* seed, int64_t salt, double drop) {
  Windows all(windows, batch, rows);
  Scratch shared;
  const Norm norm(statistics, scale, offset, width, shared);
  const Ending end{b_out, gain, nullptr, 0.0, width, Dropout(seed, salt, drop)};
  const int64_t p = pitch(width);
  auto work = tiles(all, threads, CONVOLUTION_TILE);
  Sums ends(work.size(), 3 * p, shared), norms(work.size(), 2 * p, shared);
  parallel_for(threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    float* ds = scratch.take<float>(m * p);
    double *sums = ends.of(i), *norm_sums = norms.of(i);
    for (int64_t row = first; row < first + m; ++row)
      end.backward(dy + row * width, product + row * p, x + row * width, {stats[2 * row], stats[2 * row + 1]}, row,
                   dz + row * width, d_o + row * p, {sums, sums + p, sums + 2 * p});
    gemm(Left<T>{d_o + first * p, p}, m, width, w_out, width, ds, p);
    for (int64_t r0 = 0; r0 < m; r0 += 16)  // few enough for sums in float
      for (int64_t j = 0; j < p; j += 2 * W) {
        Two d_scale{Vec(0.0f), Vec(0.0f)}, d_offset = d_scale;
        for (int64_t r = r0; r < std::min(m, r0 + 16); ++r) {
          const int64_t at = (first + r) * p;
          const Two unit = norm.unit(c + at, j), n = norm.apply(unit, j), gate = map(n, sigmoid<T>);
          const Two slope = map(n, gate, [](Vec n, Vec g) { return at::vec::fmadd(n, (Vec(1.0f) - g) * g, g); });
          const Two d = load2(ds + r * p + j) * slope;
          store2(s + at + j, n * gate);
          store2(dn + at + j, d);
          d_scale = d_scale + d * unit;
          d_offset = d_offset + d;
        }
        add_to(norm_sums + j, d_scale, 2 * W);
        add_to(norm_sums + p + j, d_offset, 2 * W);
      }
  });
  for (int64_t part = 0; part < 3; ++part) ends.total(part * p, width, d_end + part * width);
  std::vector<double> totals(2 * p, 0.0);
  norms.add_to(totals);
  for (int64_t j = 0; j < width; ++j) {
    d_norm[j] = float(totals[j]);
    d_norm[width + j] = float(totals[p + j]);
    d_norm[2 * width + j] = float(totals[p + j] - double(d_norm[width + j]));
  }
}

// The second pass, window by window: from dn to dx.
template <class T>
struct ConvolutionBackward {
  Norm norm;                  // without its offset
  const float *count, *sums;  // (1,) and (3, D), d_norm over all ranks; null: the statistics do not depend on c
  Taps taps, reversed;
  const float *gain, *shift;
  const T* w_in;  // W_in's values over its gates, P rows each, packed as (2 P, D)
  const T *dn, *c, *kept;
  const float *x, *stats, *dz;
  float* dx;
  T *d, *a;  // (N, 2, P) gradients of values and gates, (N, P) LayerNorm's rows: of them W_in's gradient is made

  int64_t width() const { return norm.width; }

  // One group of a window: gradients of the convolved rows dc and the gated rows u, one row a time step.
  void rows(Tile window, int64_t group, float* dc, float* u) const {
    const int64_t p = pitch(width());
    for (int64_t j = 0; j < PITCH; j += 2 * W) {
      const int64_t column = group * PITCH + j;
      const Two factor = load2(norm.rstd + column) * load2(norm.scale + column);
      alignas(64) float means[3][2 * W] = {};  // of what d_norm sums; the level in two numbers
      for (int64_t i = 0; sums && i < 2 * W && column + i < width(); ++i) {
        const float* sum = sums + column + i;
        const double level = (double(sum[width()]) + double(sum[2 * width()])) / *count;
        means[0][i] = *sum / *count;
        means[1][i] = float(level);
        means[2][i] = float(level - means[1][i]);
      }
      const Two tilt = load2(means[0]), level = load2(means[1]), rest = load2(means[2]);
      for (int64_t t = 0; t < window.count; ++t) {
        const int64_t row = window.first + t;
        const Two given = load2(dn + row * p + column), unit = norm.unit(c + row * p, column);
        store2(dc + t * PITCH + j, (given - level - (unit * tilt + rest)) * factor);
        const Two value = load2(kept + row * 2 * p + column), gate = load2(kept + row * 2 * p + p + column);
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
    const int64_t p = pitch(width());
    for (int64_t r0 = 0; r0 < window.count; r0 += 16)  // few enough for sums in float
      for (int64_t j = 0; j < PITCH; j += 2 * W) {
        const int64_t column = group * PITCH + j;
        Two all_v{Vec(0.0f), Vec(0.0f)}, all_g = all_v;
        for (int64_t t = r0; t < std::min(window.count, r0 + 16); ++t) {
          const int64_t at = (window.first + t) * 2 * p + column;
          const Two gate = map(load2(kept + at + p), sigmoid<T>), dv = load2(du + t * PITCH + j) * gate;
          const Two dg = dv * load2(kept + at) * map(gate, [](Vec g) { return Vec(1.0f) - g; });
          store2(d + at, dv);
          store2(d + at + p, dg);
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

  void tile(Tile tile, double* d_norm) const {
    Scratch scratch;
    const int64_t p = pitch(width()), m = tile.count;
    float *back = scratch.take<float>(m * p), *line = scratch.take<float>(p);
    gemm(Left<T>{d + tile.first * 2 * p, 2 * p}, m, 2 * p, w_in, width(), back, p);
    for (int64_t r = 0, row = tile.first; r < m; ++r, ++row) {
      const float* from = x + row * width();
      const Statistics s{stats[2 * row], stats[2 * row + 1]};
      normalise(from, s, gain, shift, width(), line);
      to_half(line, width(), a + row * p);
      normalise_backward(back + r * p, from, s, gain, width(), line, d_norm, d_norm + p);
      columns(width(), [&](int64_t j, int64_t n) {
        store2(dx + row * width() + j, load2(line + j, n) + load2(dz + row * width() + j, n), n);
      });
    }
  }
};

// d_taps (P / PITCH, count, PITCH), d_bias (2, P), d_norm (2, D) of LayerNorm's gain and shift. reversed: the taps from
// the last to the first, `after` of them for rows before the result's.
template <class T>
void convolution_backward_in(int64_t threads, float* dx, T* d, T* a, float* d_taps, float* d_bias, float* d_norm,
                             const T* dn, const T* c, const float* statistics, const float* scale, const float* count,
                             const float* sums, const T* kept, const float* x, const float* stats, const float* dz,
                             const int64_t* windows, int64_t batch, int64_t rows, int64_t width, const T* w_in,
                             const float* reversed, int64_t taps, int64_t before, int64_t after, const float* gain,
                             const float* shift) {
  Windows all(windows, batch, rows);
  Scratch shared;
  const ConvolutionBackward<T> op{Norm(statistics, scale, scale, width, shared),
                                  count,
                                  sums,
                                  {nullptr, taps, before},
                                  {reversed, taps, after},
                                  gain,
                                  shift,
                                  w_in,
                                  dn,
                                  c,
                                  kept,
                                  x,
                                  stats,
                                  dz,
                                  dx,
                                  d,
                                  a};
  const int64_t p = pitch(width);
  Shares shares(threads, all);
  Sums tap_sums(shares.count(), taps * p, shared), biases(shares.count(), 2 * p, shared);
  Sums norms(shares.count() * shares.most(), 2 * p, shared);
  shares.run(0, [&](Team& team, int64_t i, int64_t share, char*) {
    const Tile window{all.starts[i], all.lengths[i]};
    for (int64_t g = team.rank; g < p / PITCH; g += team.size)
      op.group(window, g, tap_sums.of(share), biases.of(share));
    team.wait();
    for_tiles(team, window.count, CONVOLUTION_TILE, [&](int64_t first, int64_t m) {
      op.tile({window.first + first, m}, norms.of(share * shares.most() + team.rank));
    });
  });
  clear_others(all, dx, width);
  tap_sums.total(0, taps * p, d_taps);
  biases.total(0, 2 * p, d_bias);
  for (int64_t part = 0; part < 2; ++part) norms.total(part * p, width, d_norm + part * width);
}

}  // namespace astroco
