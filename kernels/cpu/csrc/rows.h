// What is done to a row (LayerNorm, dropout, residual), and which rows there are.
//
// Rows between ops are float (N, D), x and y below. Half rows, inside ops, are H (N, P), P = pitch(D), zero from D on,
// where H is the compute type T, or BFloat16 for int8.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "int8.h"

namespace astroco {

// The windows of a batch: `count` of them, in the order of their rows, with their numbers of real points.
struct Windows {
  const int64_t *starts, *lengths;
  int64_t count, rows;

  // From the arguments of an op: `windows` (2, B), `batch` and `rows`.
  template <class Arguments>
  explicit Windows(const Arguments& a)
      : starts(a.windows), lengths(a.windows + a.batch), count(a.batch), rows(a.rows) {}
};

// Rows first .. first + count - 1, all of them real.
struct Tile {
  int64_t first, count;
};

// Windows whose rows follow one another, joined.
inline std::vector<Tile> runs(const Windows& windows) {
  std::vector<Tile> found;
  for (int64_t i = 0; i < windows.count; ++i) {
    if (windows.lengths[i] == 0) continue;
    if (!found.empty() && found.back().first + found.back().count == windows.starts[i])
      found.back().count += windows.lengths[i];
    else
      found.push_back({windows.starts[i], windows.lengths[i]});
  }
  return found;
}

// Runs cut into tiles of at most `most` rows (a multiple of BLOCK_ROWS), so many that the threads can share them
// evenly. All tiles but the last of a run have a multiple of BLOCK_ROWS, which is even.
inline std::vector<Tile> cut(const std::vector<Tile>& runs, int64_t threads, int64_t most) {
  int64_t rows = 0;
  for (auto run : runs) rows += run.count;
  int64_t parts = (rows + most - 1) / most;
  if (parts < 8 * threads) parts = round_up(parts, threads);
  const int64_t size = round_up((rows + parts - 1) / std::max<int64_t>(parts, 1), BLOCK_ROWS);
  std::vector<Tile> found;
  for (auto run : runs)
    for (int64_t first = 0; first < run.count; first += size)
      found.push_back({run.first + first, std::min(size, run.count - first)});
  return found;
}

// All real rows in such tiles.
inline std::vector<Tile> tiles(const Windows& windows, int64_t threads, int64_t most) {
  return cut(runs(windows), threads, most);
}

// Zeros in the rows that are not real.
template <class T>
void clear_others(const Windows& windows, T* y, int64_t width) {
  int64_t done = 0;
  auto clear = [&](int64_t end) {
    if (end > done) std::memset(static_cast<void*>(y + done * width), 0, (end - done) * width * sizeof(T));
  };
  for (auto run : runs(windows)) {
    clear(run.first);
    done = run.first + run.count;
  }
  clear(windows.rows);
}

// f(j, n) for each 2 W columns of a row; n columns are left from j on.
template <class F>
ALWAYS_INLINE void columns(int64_t width, F&& f) {
  for (int64_t j = 0; j < width; j += 2 * W) f(j, width - j);
}

template <class F>
ALWAYS_INLINE Two map(Two x, F&& f) {
  return {f(x.a), f(x.b)};
}
template <class F>
ALWAYS_INLINE Two map(Two x, Two y, F&& f) {
  return {f(x.a, y.a), f(x.b, y.b)};
}
ALWAYS_INLINE Two operator+(Two x, Two y) { return {x.a + y.a, x.b + y.b}; }
ALWAYS_INLINE Two operator-(Two x, Two y) { return {x.a - y.a, x.b - y.b}; }
ALWAYS_INLINE Two operator*(Two x, Two y) { return {x.a * y.a, x.b * y.b}; }
ALWAYS_INLINE Two operator*(Two x, Vec y) { return {x.a * y, x.b * y}; }
ALWAYS_INLINE float sum(Two x) { return sum(x.a + x.b); }

// f(some, r) for m rows, `some` of them from r on at a time: their sums need not wait for one another.
constexpr int ROWS_AT_ONCE = 4;
template <class F>
ALWAYS_INLINE void by_rows(int64_t m, F&& f) {
  int64_t r = 0;
  for (; r + ROWS_AT_ONCE <= m; r += ROWS_AT_ONCE) f(std::integral_constant<int, ROWS_AT_ONCE>{}, r);
  for (; r < m; ++r) f(std::integral_constant<int, 1>{}, r);
}

// A row to a half row.
template <class T>
inline void to_half(const float* x, int64_t width, T* half) {
  columns(width, [&](int64_t j, int64_t n) { store2(half + j, load2(x + j, n)); });
  for (int64_t j = round_up(width, 2 * W); j < pitch(width); j += 2 * W) store2(half + j, Two{Vec(0.0f), Vec(0.0f)});
}

// A of a product, written row by row.
template <class T>
struct Factor {
  int64_t width, row;
  T* values;

  Factor(int64_t rows, int64_t width, Scratch& scratch)
      : width(width), row(pitch(width)), values(scratch.take<T>(rows * row)) {}
  // R rows from r on.
  template <int R>
  void set(int64_t r, const float* x, int64_t ld) {
    for (int i = 0; i < R; ++i) to_half(x + i * ld, width, values + (r + i) * row);
  }
  operator Left<T>() const { return {values, row}; }
};

#ifdef __AVX512VNNI__
template <>
struct Factor<int8_t> {
  static constexpr int64_t LINE = 64;
  int64_t width, row;
  int8_t* values;
  float* scales;

  Factor(int64_t rows, int64_t width, Scratch& scratch)
      : width(width),
        row(round_up(width, LINE)),
        values(scratch.take<int8_t>(rows * row)),
        scales(scratch.take<float>(rows)) {}
  template <int R, class X>
  void set(int64_t r, const X* x, int64_t ld) {
    quantise<R>(x, ld, width, values + r * row, row, scales + r);
  }
  operator Left<int8_t>() const { return {values, row, scales}; }
};
#endif

// Rows x (rows, ld) as A of a product: as they are where they are of its type, else in `scratch`.
template <class T, class X>
inline Left<T> as_left(const X* x, int64_t ld, int64_t width, int64_t rows, Scratch& scratch) {
  if constexpr (std::is_same_v<T, X>) {
    return {x, ld};
  } else {
    Factor<T> left(rows, width, scratch);
    by_rows(rows, [&](auto some, int64_t r) { left.template set<some>(r, x + r * ld, ld); });
    return left;
  }
}

// LayerNorm's statistics of a row.
//
// Where a product is kept in half precision, backward computes the statistics of the rounded row again: with those from
// before rounding, the normalised row would not have mean zero, and dy's mean would add an error to the whole row's
// gradient. `stats` (N, 2) holds the statistics of rows that are kept in float.
struct Statistics {
  float mean, rstd;

  static Statistics of(const float* stats, int64_t row) { return {stats[2 * row], stats[2 * row + 1]}; }
  void keep(float* stats, int64_t row) const {
    stats[2 * row] = mean;
    stats[2 * row + 1] = rstd;
  }
};

// Of R rows, `ld` from one to the next.
template <int R>
inline std::array<Statistics, R> statistics(const float* z, int64_t ld, int64_t width, double eps) {
  // After n of these come zeros, which take away what the lanes beyond a row hold.
  alignas(64) static constexpr auto ONES = [] {
    std::array<float, 4 * W> ones{};
    std::fill_n(ones.begin(), 2 * W, 1.0f);
    return ones;
  }();
  Two total[R], squares[R];
  float mean[R];
  for (auto& zero : total) zero = {Vec(0.0f), Vec(0.0f)};
  for (auto& zero : squares) zero = {Vec(0.0f), Vec(0.0f)};
  columns(width, [&](int64_t j, int64_t n) {
    for (int i = 0; i < R; ++i) total[i] = total[i] + load2(z + i * ld + j, n);
  });
  for (int i = 0; i < R; ++i) mean[i] = sum(total[i]) / width;
  columns(width, [&](int64_t j, int64_t n) {
    for (int i = 0; i < R; ++i) {
      const Vec about(mean[i]);
      Two d = map(load2(z + i * ld + j, n), [&](Vec v) { return v - about; });
      if (n < 2 * W) d = d * load2(ONES.data() + 2 * W - n);
      squares[i] = map(d, squares[i], [](Vec v, Vec s) { return at::vec::fmadd(v, v, s); });
    }
  });
  std::array<Statistics, R> found;
  for (int i = 0; i < R; ++i) {
    const float variance = sum(squares[i]) / width;
    // The last term is zero, or NaN where the squares overflow: 1 / sqrt(inf) = 0 would give finite, wrong rows.
    found[i] = {mean[i], 1.0f / std::sqrt(variance + float(eps)) + (variance - variance)};
  }
  return found;
}

// y = (z - mean) rstd gain + shift for R rows; y may be z.
template <size_t R>
inline void normalise(const float* z, int64_t ld, const std::array<Statistics, R>& s, const float* gain,
                      const float* shift, int64_t width, float* y, int64_t ld_y) {
  columns(width, [&](int64_t j, int64_t n) {
    const Two by = load2(gain + j, n), plus = load2(shift + j, n);
    for (size_t i = 0; i < R; ++i) {
      const Vec mean(s[i].mean), rstd(s[i].rstd);
      const Two unit = map(load2(z + i * ld + j, n), [&](Vec v) { return (v - mean) * rstd; });
      store2(y + i * ld_y + j, {at::vec::fmadd(unit.a, by.a, plus.a), at::vec::fmadd(unit.b, by.b, plus.b)}, n);
    }
  });
}

// The rows z of a tile to y.
inline void normalise_rows(const float* z, int64_t ld, Tile tile, int64_t width, double eps, const float* gain,
                           const float* shift, float* y) {
  by_rows(tile.count, [&](auto some, int64_t r) {
    const auto s = statistics<some>(z + r * ld, ld, width, eps);
    for (int i = 0; i < some; ++i)  // y is written as it lies
      normalise<1>(z + (r + i) * ld, ld, {s[i]}, gain, shift, width, y + (tile.first + r + i) * width, width);
  });
}

// Sums over all rows: over the rows of each tile, then over the tiles, so that they do not depend on which thread did
// which tile. They are double, because a sum of thousands of float numbers of one sign would lose digits.
class Sums {
 public:
  Sums(int64_t tiles, int64_t columns, Scratch& scratch)
      : tiles_(tiles), columns_(columns), values_(scratch.take<double>(tiles * columns)) {
    std::fill(values_, values_ + tiles * columns, 0.0);
  }

  double* of(int64_t tile) const { return values_ + tile * columns_; }

  void add_to(std::vector<double>& totals) const {
    for (int64_t i = 0; i < tiles_; ++i)
      for (int64_t j = 0; j < columns_; ++j) totals[j] += of(i)[j];
  }

  // The sums of columns first .. first + n - 1.
  void total(int64_t first, int64_t n, float* out) const {
    std::vector<double> totals(n, 0.0);
    for (int64_t i = 0; i < tiles_; ++i)
      for (int64_t j = 0; j < n; ++j) totals[j] += of(i)[first + j];
    std::copy(totals.begin(), totals.end(), out);
  }

 private:
  int64_t tiles_, columns_;
  double* values_;
};

// Adds the first n of 2 W numbers, or all if there are more.
ALWAYS_INLINE void add_to(double* sums, Two v, int64_t n) {
  alignas(64) float lanes[2 * W];
  store2(lanes, v);
  if (n >= 2 * W)
    for (int64_t j = 0; j < 2 * W; ++j) sums[j] += lanes[j];
  else
    for (int64_t j = 0; j < n; ++j) sums[j] += lanes[j];
}

// A tile's sums over its rows: in float over as many rows as do no harm, then in double.
class TileSums {
 public:
  static constexpr int64_t IN_FLOAT = 16;  // rows

  TileSums(double* sums, int64_t columns, Scratch& scratch)
      : sums_(sums), columns_(columns), some_(scratch.take<float>(columns)) {
    std::fill(some_, some_ + columns_, 0.0f);
  }
  ~TileSums() { settle(); }
  TileSums(const TileSums&) = delete;
  TileSums& operator=(const TileSums&) = delete;

  // What the next row adds its numbers to.
  float* next() {
    if (rows_ == IN_FLOAT) settle();
    ++rows_;
    return some_;
  }

 private:
  void settle() {
    for (int64_t j = 0; j < columns_; ++j) sums_[j] += some_[j], some_[j] = 0.0f;
    rows_ = 0;
  }

  double* sums_;
  int64_t columns_, rows_ = 0;
  float* some_;
};

ALWAYS_INLINE void add_to(float* sums, Two v) { store2(sums, load2(sums) + v); }

// Back through `normalise` of z: dz from dy, and what the row adds to the gradients of gain and shift. dz may be dy.
inline void normalise_backward(const float* dy, const float* z, Statistics s, const float* gain, int64_t width,
                               float* dz, float* d_gain, float* d_shift) {
  Vec mean(s.mean), rstd(s.rstd);
  auto normal = [&](int64_t j, int64_t n) { return map(load2(z + j, n), [&](Vec v) { return (v - mean) * rstd; }); };
  Two second{Vec(0.0f), Vec(0.0f)};
  alignas(64) double first[2 * W] = {};
  columns(width, [&](int64_t j, int64_t n) {
    Two up = load2(dy + j, n), unit = normal(j, n), scaled = up * load2(gain + j, n);  // zero beyond the row
    add_to(first, scaled, 2 * W);
    second = second + scaled * unit;
    add_to(d_gain + j, up * unit);
    add_to(d_shift + j, up);
  });
  // Where dy is the same in all rows, so is the rounding error of its mean, and sums over rows would show it.
  for (int64_t half = W; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) first[i] += first[half + i];
  const double level = first[0] / width;
  const Vec minus_level(-float(level)), rest(float(level - float(level))), along(sum(second) / width);
  columns(width, [&](int64_t j, int64_t n) {
    Two up = load2(dy + j, n), scale = load2(gain + j, n), unit = normal(j, n);
    auto one = [&](Vec d, Vec g, Vec u) {
      return (at::vec::fmadd(d, g, minus_level) - at::vec::fmadd(u, along, rest)) * rstd;
    };
    store2(dz + j, {one(up.a, scale.a, unit.a), one(up.b, scale.b, unit.b)}, n);
  });
}

// What a sublayer's dropout multiplies by: 0 or 1 / (1 - p), a function of (seed, salt, row, column) alone.
class Dropout {
 public:
  // seed: null where nothing is dropped.
  Dropout(const int64_t* seed, int64_t salt, double p)
      : on(seed != nullptr),
        key_(seed ? mixed(uint64_t(*seed) + 0x9e3779b97f4a7c15u * uint64_t(salt + 1)) : 0),
        drop_(uint32_t(std::min(p * 4294967296.0, 4294967295.0))),
        scale_(p < 1 ? float(1 / (1 - p)) : 0.0f) {}

  const bool on;

  void scales(int64_t row, int64_t width, float* out) const {
    const uint32_t start = uint32_t(mixed(key_ + uint64_t(row)) >> 32), drop = drop_;
    const float scale = scale_;
    for (int64_t j = 0; j < width; ++j) {  // murmur3's last steps, which compilers vectorise
      uint32_t h = start + uint32_t(j) * 0x9e3779b9u;
      h = (h ^ (h >> 16)) * 0x85ebca6bu;
      h = (h ^ (h >> 13)) * 0xc2b2ae35u;
      h ^= h >> 16;
      out[j] = h < drop ? 0.0f : scale;
    }
  }

 private:
  static uint64_t mixed(uint64_t z) {  // splitmix64
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  uint64_t key_;
  uint32_t drop_;
  float scale_;
};

// What dropout multiplies a batch by, written out. The ops do without it; tests and self-checks compare with it.
struct DropoutMaskArguments {
  int64_t threads;      // that may run
  float* mask;          // (N, D): 0 or 1 / (1 - p)
  const int64_t* seed;  // (1,)
  int64_t salt;
  double p;
  int64_t rows;   // N
  int64_t width;  // D
};

inline void dropout_mask(const DropoutMaskArguments& a) {
  const Dropout dropout(a.seed, a.salt, a.p);
  parallel_for(a.threads, a.rows, [&](int64_t row) { dropout.scales(row, a.width, a.mask + row * a.width); });
}

// What a row adds to the gradients of an ending's vectors: of the bias of the product before it, and of LayerNorm.
struct EndingSums {
  float *bias, *gain, *shift;

  EndingSums(TileSums& sums, int64_t pitch) : bias(sums.next()), gain(bias + pitch), shift(gain + pitch) {}
};

// How a sublayer ends: y = LayerNorm(x + Dropout(o + bias)).
struct Ending {
  const float *bias, *gain, *shift;
  double eps;
  int64_t width;
  Dropout dropout;

  // What this row's dropout multiplies by; null where nothing is dropped.
  const float* scales(int64_t row, Scratch& scratch) const {
    if (!dropout.on) return nullptr;
    float* scale = scratch.take<float>(pitch(width));
    dropout.scales(row, width, scale);
    return scale;
  }

  // z = x + Dropout(o + bias), one row.
  template <class T>
  void residual(const T* o, const float* x, const float* scale, float* z) const {
    columns(width, [&](int64_t j, int64_t n) {
      Two product = load2(o + j) + load2(bias + j, n);
      if (scale) product = product * load2(scale + j, n);
      store2(z + j, product + load2(x + j, n), n);
    });
  }

  // The rows of a tile. Where o lies is overwritten.
  template <class T>
  void forward(Products<T> o, Tile tile, const float* x, float* y) const {
    by_rows(tile.count, [&](auto some, int64_t r) {
      const Tile rows{tile.first + r, some};
      for (int64_t i = 0; i < some; ++i) {
        Scratch scratch;
        const float *scale = scales(rows.first + i, scratch), *residual = x + (rows.first + i) * width;
        float* z = o.at(r + i);
        columns(width, [&](int64_t j, int64_t n) {
          Two product = o(r + i, j, load2(bias + j, n));
          if (scale) product = product * load2(scale + j, n);
          store2(z + j, product + load2(residual + j, n), n);
        });
      }
      normalise_rows(o.at(r), o.ld, rows, width, eps, gain, shift, y);
    });
  }

  // One row: from dy, o and x come d_x, the residual's share of x's gradient, and d_o, a half row.
  template <class T>
  void backward(const float* dy, const T* o, const float* x, int64_t row, float* d_x, T* d_o, EndingSums sums) const {
    Scratch scratch;
    float *z = scratch.take<float>(pitch(width)), *d = scratch.take<float>(pitch(width));
    const float* scale = scales(row, scratch);
    residual(o, x, scale, z);
    normalise_backward(dy, z, statistics<1>(z, width, width, eps)[0], gain, width, d_x, sums.gain, sums.shift);
    columns(width, [&](int64_t j, int64_t n) {
      Two through = load2(d_x + j, n);
      if (scale) through = through * load2(scale + j, n);
      add_to(sums.bias + j, through);
      store2(d + j, through);
    });
    to_half(d, width, d_o);
  }
};

}  // namespace astroco
