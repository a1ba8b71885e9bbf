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

// A row's point. Hidden ones have zeros in the fields that `hide` names: 1 for time, 2 for magnitude, 4 for
// uncertainty. Backward has no times: their gradient is not wanted.
template <class Arguments>
Point point(const Arguments& a, int64_t row) {
  const int64_t zero = a.hidden && a.hidden[row] ? a.hide : 0;
  Point found{0.0f, zero & 2 ? 0.0f : a.mag[row], zero & 4 ? 0.0f : a.err[row]};
  if constexpr (requires { a.time; }) found.time = zero & 1 ? 0.0f : a.time[row];
  return found;
}

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

template <class T>
struct InputEmbedArguments {
  int64_t threads;         // that may run
  float* y;                // (N, D), x(0)
  T* features;             // (N, P), where `keep`: what `fuse` multiplies, half rows
  T* product;              // (N, P), where `keep`: its product, half rows
  const float* time;       // (N,), days, centred
  const float* mag;        // (N,), magnitudes, centred
  const float* err;        // (N,), their uncertainties
  const uint8_t* hidden;   // (N,), bool; null: no point is hidden
  int64_t hide;            // which fields of hidden points are zero: see `point`
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  double base;             // of the sinusoids' frequencies
  const float* w_points;   // (D/2, 2), photometry's
  const float* b_points;   // (D/2,)
  const T* w_fuse;         // packed (D, D)
  const float* b_fuse;     // (D,)
  const float* gain;       // (D,), LayerNorm's
  const float* shift;      // (D,)
  double eps;              // LayerNorm's
  int64_t keep;            // whether backward will follow
};

template <class T>
void input_embed(const InputEmbedArguments<T>& a) {
  const Windows all(a);
  Scratch shared;
  const int64_t width = a.width, p = pitch(width);
  const Features features(width, a.base, a.w_points, a.b_points, shared);
  auto work = tiles(all, a.threads, INPUT_EMBED_TILE);
  parallel_for(a.threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    T* left = a.keep ? a.features + first * p : scratch.take<T>(m * p);
    float* o = scratch.take<float>(m * p);
    for (int64_t r = 0; r < m; ++r) features.of(point(a, first + r), left + r * p);
    gemm(Left<T>{left, p}, m, width, a.w_fuse, width, o, p);
    for (int64_t r = 0, row = first; r < m; ++r, ++row) {
      float* z = o + r * p;
      if (a.keep) to_half(z, p, a.product + row * p);
      columns(width, [&](int64_t j, int64_t n) {
        store2(z + j, map(load2(z + j) + load2(a.b_fuse + j, n), [](Vec v) { return gelu<T>(v); }));
      });
    }
    normalise_rows(o, p, {first, m}, width, a.eps, a.gain, a.shift, a.y);
  });
  clear_others(all, a.y, width);
}

// Photometry is linear in magnitude and uncertainty, so its gradient is a product of three of the sums with the weight
// of `fuse`; that of the features is never needed.
template <class T>
struct InputEmbedBackwardArguments {
  int64_t threads;         // that may run
  T* d_o;                  // (N, P), half rows, the gradient of the product; rows that are not real are not written
  float* d_vectors;        // (5, D), of gain, shift and b_fuse; sums over rows of d_o times magnitude and uncertainty
  const float* dy;         // (N, D)
  const T* product;        // (N, P), what forward kept
  const float* mag;        // (N,)
  const float* err;        // (N,)
  const uint8_t* hidden;   // (N,), bool; null: no point is hidden
  int64_t hide;            // which fields of hidden points are zero: see `point`
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  const float* b_fuse;     // (D,)
  const float* gain;       // (D,), LayerNorm's
  double eps;              // LayerNorm's
};

template <class T>
void input_embed_backward(const InputEmbedBackwardArguments<T>& a) {
  const Windows all(a);
  Scratch shared;
  const int64_t width = a.width, p = pitch(width);
  auto work = tiles(all, a.threads, INPUT_EMBED_TILE);
  Sums vectors(work.size(), 5 * p, shared);
  parallel_for(a.threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    float *z = scratch.take<float>(p), *slope = scratch.take<float>(p), *d = scratch.take<float>(p);
    TileSums sums(vectors.of(i), 5 * p, scratch);
    for (int64_t row = work[i].first; row < work[i].first + work[i].count; ++row) {
      columns(width, [&](int64_t j, int64_t n) {
        auto one = [](Vec x, Vec& z, Vec& slope) {
          const Normal at = normal<T>(x);
          z = x * at.cdf;
          slope = at::vec::fmadd(x, at.pdf, at.cdf);
        };
        Two x = load2(a.product + row * p + j) + load2(a.b_fuse + j, n), value, steep;
        one(x.a, value.a, steep.a);
        one(x.b, value.b, steep.b);
        store2(z + j, value);
        store2(slope + j, steep);
      });
      float* into = sums.next();
      normalise_backward(a.dy + row * width, z, statistics<1>(z, p, width, a.eps)[0], a.gain, width, d, into, into + p);
      const Point at = point(a, row);
      columns(width, [&](int64_t j, int64_t n) {
        const Two through = load2(d + j, n) * load2(slope + j);
        store2(d + j, through);
        float* to = into + 2 * p + j;
        add_to(to, through);
        add_to(to + p, through * Vec(at.mag));
        add_to(to + 2 * p, through * Vec(at.err));
      });
      to_half(d, width, a.d_o + row * p);
    }
  });
  for (int64_t part = 0; part < 5; ++part) vectors.total(part * p, width, a.d_vectors + part * width);
}

}  // namespace astroco
