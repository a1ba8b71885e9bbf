// x(0): LayerNorm(GELU(fuse(photometry, sines and cosines of the time))), row tile by row tile: a point is 13 bytes,
// and only y is written.
#pragma once

#include <c10/util/bit_cast.h>

#include "rows.h"

namespace astroco {

constexpr int64_t INPUT_EMBED_TILE = 16 * ROWS;

// sin and cos of time * frequencies[i], to 1.5 units in the last place. The angle is the float product that the
// reference takes the sine of; it is reduced in double, which is exact enough however many days there are. Plain loops:
// compilers vectorise them.
inline void sines(float time, const float* frequencies, int64_t n, float* __restrict sine, float* __restrict cosine) {
  constexpr double ROUND =
      6755399441055744.0;  // 1.5 * 2^52: what is added to it becomes a whole number in its low bits
  for (int64_t i = 0; i < n; ++i) {
    const double angle = time * frequencies[i];
    const double shifted = angle * 0.6366197723675814 + ROUND, quarters = shifted - ROUND;
    // pi/2 in two parts: the first has 33 bits, so that its multiples are exact.
    const float r = float((angle - quarters * 1.5707963267341256) - quarters * 6.077100506506192e-11);
    const uint32_t quarter = uint32_t(c10::bit_cast<uint64_t>(shifted));
    const float s = r * r;
    // Taylor's series, cut where the next term is below 1e-9.
    const float a = r + r * s * (-1.0f / 6 + s * (1.0f / 120 + s * (-1.0f / 5040 + s * (1.0f / 362880))));
    const float b =
        1.0f + s * (-0.5f + s * (1.0f / 24 + s * (-1.0f / 720 + s * (1.0f / 40320 - s * (1.0f / 3628800)))));
    const bool odd = quarter & 1;
    const uint32_t up = c10::bit_cast<uint32_t>(odd ? b : a), across = c10::bit_cast<uint32_t>(odd ? a : b);
    sine[i] = c10::bit_cast<float>(up ^ (quarter & 2) << 30);
    cosine[i] = c10::bit_cast<float>(across ^ ((quarter + 1) & 2) << 30);
  }
}

struct Point {
  float time, mag, err;
};

// Points (N,) each. Those that are `hidden` (null: none are) have zeros in the fields that `hide` names: 1 for time, 2
// for magnitude, 4 for uncertainty.
struct Points {
  const float *time, *mag, *err;
  const uint8_t* hidden;
  int64_t hide;

  Point operator[](int64_t row) const {
    const int64_t zero = hidden && hidden[row] ? hide : 0;
    return {zero & 1 ? 0.0f : time[row], zero & 2 ? 0.0f : mag[row], zero & 4 ? 0.0f : err[row]};
  }
};

// What `fuse` multiplies: photometry, Linear(2 -> D/2) in float, beside sines and cosines.
class Features {
 public:
  // weight (D/2, 2), bias (D/2,).
  Features(int64_t width, double base, const float* weight, const float* bias, Scratch& scratch)
      : width_(width),
        half_(width / 2),
        quarter_(width / 4),
        by_mag_(scratch.take<float>(half_)),
        by_err_(scratch.take<float>(half_)),
        frequencies_(scratch.take<float>(quarter_)),
        bias_(bias) {
    for (int64_t j = 0; j < half_; ++j) {
      by_mag_[j] = weight[2 * j];
      by_err_[j] = weight[2 * j + 1];
    }
    for (int64_t i = 0; i < quarter_; ++i) frequencies_[i] = float(std::pow(base, double(-2 * i) / half_));
  }

  // One half row.
  template <class T>
  void of(Point point, T* out) const {
    Scratch scratch;
    float* row = scratch.take<float>(width_);
    for (int64_t j = 0; j < half_; ++j) row[j] = point.mag * by_mag_[j] + (point.err * by_err_[j] + bias_[j]);
    sines(point.time, frequencies_, quarter_, row + half_, row + half_ + quarter_);
    to_half(row, width_, out);
  }

 private:
  int64_t width_, half_, quarter_;
  float *by_mag_, *by_err_, *frequencies_;
  const float* bias_;
};

// y (N, D). features and product, half rows (N, P), take what `fuse` multiplies and gives, stats (N, 2) LayerNorm's;
// null: not wanted. fuse is packed (D, D).
template <class T>
void input_embed(int64_t threads, float* y, T* features, T* product, float* stats, const float* time, const float* mag,
                 const float* err, const uint8_t* hidden, int64_t hide, const int64_t* windows, int64_t batch,
                 int64_t rows, int64_t width, double base, const float* w_points, const float* b_points, const T* fuse,
                 const float* b_fuse, const float* gain, const float* shift, double eps) {
  Windows all(windows, batch, rows);
  Scratch shared;
  const Points points{time, mag, err, hidden, hide};
  const Features make(width, base, w_points, b_points, shared);
  const int64_t p = pitch(width);
  auto work = tiles(all, threads, INPUT_EMBED_TILE);
  parallel_for(threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    T* a = features ? features + first * p : scratch.take<T>(m * p);
    float* o = scratch.take<float>(m * p);
    for (int64_t r = 0; r < m; ++r) make.of(points[first + r], a + r * p);
    gemm(Left<T>{a, p}, m, width, fuse, width, o, p);
    for (int64_t r = 0, row = first; r < m; ++r, ++row) {
      float* z = o + r * p;
      if (product) to_half(z, p, product + row * p);
      columns(width, [&](int64_t j, int64_t n) { store2(z + j, map(load2(z + j) + load2(b_fuse + j, n), gelu<T>)); });
      const Statistics s = statistics(z, width, eps);
      normalise(z, s, gain, shift, width, y + row * width);
      if (stats) {
        stats[2 * row] = s.mean;
        stats[2 * row + 1] = s.rstd;
      }
    }
  });
  clear_others(all, y, width);
}

// d_o, half rows (N, P), the gradient of what `fuse` gives, and sums (5, D): the gradients of gain, shift and fuse's
// bias, and the sums over rows of d_o times the magnitude, and times the uncertainty. Photometry being linear in the
// two, its gradient is a product of the last three with fuse's weight; that of the features is never needed.
template <class T>
void input_embed_backward(int64_t threads, T* d_o, float* sums, const float* dy, const T* product, const float* stats,
                          const float* mag, const float* err, const uint8_t* hidden, int64_t hide,
                          const int64_t* windows, int64_t batch, int64_t rows, int64_t width, const float* b_fuse,
                          const float* gain) {
  Windows all(windows, batch, rows);
  Scratch shared;
  const Points points{mag, mag, err, hidden, hide};  // times matter no more
  const int64_t p = pitch(width);
  auto work = tiles(all, threads, INPUT_EMBED_TILE);
  Sums vectors(work.size(), 5 * p, shared);
  parallel_for(threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    float *z = scratch.take<float>(p), *slope = scratch.take<float>(p), *d = scratch.take<float>(p);
    double* into = vectors.of(i);
    for (int64_t row = work[i].first; row < work[i].first + work[i].count; ++row) {
      columns(width, [&](int64_t j, int64_t n) {
        auto one = [](Vec x, Vec& z, Vec& slope) {
          const Normal at = normal<T>(x);
          z = x * at.cdf;
          slope = at::vec::fmadd(x, at.pdf, at.cdf);
        };
        Two x = load2(product + row * p + j) + load2(b_fuse + j, n), value, steep;
        one(x.a, value.a, steep.a);
        one(x.b, value.b, steep.b);
        store2(z + j, value);
        store2(slope + j, steep);
      });
      normalise_backward(dy + row * width, z, {stats[2 * row], stats[2 * row + 1]}, gain, width, d, into, into + p);
      const Point point = points[row];
      columns(width, [&](int64_t j, int64_t n) {
        const Two through = load2(d + j, n) * load2(slope + j);
        store2(d + j, through);
        double* to = into + 2 * p + j;
        add_to(to, through, n);
        add_to(to + p, through * Vec(point.mag), n);
        add_to(to + 2 * p, through * Vec(point.err), n);
      });
      to_half(d, width, d_o + row * p);
    }
  });
  for (int64_t part = 0; part < 5; ++part) vectors.total(part * p, width, sums + part * width);
}

}  // namespace astroco
