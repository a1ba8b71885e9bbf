// Sublayer b: LayerNorm(x + Dropout(W_out SiLU(BatchNorm(conv(GLU(W_in LayerNorm(x))))))), window by window.
//
// Inference has BatchNorm in the taps, and what lies between x and y stays in a core's cache. Training needs the whole
// batch's statistics between the convolution and BatchNorm: the convolved rows go to memory.
#pragma once

#include "teams.h"

namespace astroco {

constexpr int64_t CONVOLUTION_TILE = 96;

// The convolution takes PITCH channels at a time, a group, whose rows lie end to end. Of a vector of channels, SPAN
// results stay in registers while REACH taps are read once for all of them, and so is each row.
constexpr int64_t SPAN = 8;  // as in kernels/cpu/convolution.py
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
constexpr int64_t REACH = 8;
#else
constexpr int64_t REACH = 4;
#endif

// A window in groups: (P / PITCH, rows, PITCH) float.
struct Groups {
  float* values;
  int64_t rows;

  float* of(int64_t group) const { return values + group * rows * PITCH; }
  float* at(int64_t row, int64_t column) const {
    return values + (column / PITCH * rows + row) * PITCH + column % PITCH;
  }

  // Zeros in all rows but `count` from `first` on.
  void clear_around(int64_t width, int64_t first, int64_t count) const {
    for (int64_t g = 0; g < pitch(width) / PITCH; ++g) {
      std::fill(of(g), of(g) + first * PITCH, 0.0f);
      std::fill(of(g) + (first + count) * PITCH, of(g) + rows * PITCH, 0.0f);
    }
  }
};

// sums[i] += sum_j w[j] x[i + j], i < SPAN and j < REACH, for a vector of channels.
inline void correlate(Vec (&sums)[SPAN], const float* x, const float* w) {
  Vec taps[REACH];
#pragma GCC unroll 8
  for (int j = 0; j < REACH; ++j) taps[j] = Vec::loadu(w + j * PITCH);
#pragma GCC unroll 16
  for (int s = 0; s < SPAN + REACH - 1; ++s) {
    Vec row = Vec::loadu(x + s * PITCH);
#pragma GCC unroll 8
    for (int i = 0; i < SPAN; ++i)
      if (s - i >= 0 && s - i < REACH) sums[i] = at::vec::fmadd(row, taps[s - i], sums[i]);
  }
}

struct Taps {
  const float* values;    // (P / PITCH, count, PITCH)
  int64_t count, before;  // a multiple of SPAN, zeros at the end; how many are for rows before the result's

  Taps(const float* values, int64_t kernel, int64_t before)
      : values(values), count(round_up(kernel, SPAN)), before(before) {}
  // Of K taps as many are for rows before the result's.
  static int64_t before_of(int64_t kernel) { return kernel / 2; }

  const float* of(int64_t group) const { return values + group * count * PITCH; }
  // Rows that a window of n takes up: `before` zeros, its own, and zeros.
  int64_t rows(int64_t n) const { return round_up(n, SPAN) + count; }
  // The memory that the longest window takes up.
  int64_t bytes(const Windows& windows, int64_t p) const {
    const int64_t n = windows.count ? *std::max_element(windows.lengths, windows.lengths + windows.count) : 0;
    return p * rows(n) * sizeof(float);
  }
};

// f(t, j, sum_k taps[k] x[t + k]) for `count` results t from `first` on, of one group, whose columns are j, j + 1 ...
template <class F>
inline void depthwise(const float* x, const float* taps, int64_t many, int64_t first, int64_t count, F&& f) {
  for (int64_t t = first; t < first + count; t += SPAN)
    for (int64_t j = 0; j < PITCH; j += 2 * W) {
      Vec sums[2][SPAN];
      for (int half = 0; half < 2; ++half) {
        for (auto& sum : sums[half]) sum = Vec(0.0f);
        const int64_t column = j + half * W;
        for (int64_t k = 0; k < many; k += REACH)
          correlate(sums[half], x + (t + k) * PITCH + column, taps + k * PITCH + column);
      }
      const int64_t n = std::min(SPAN, first + count - t);
      for (int64_t i = 0; i < n; ++i) f(t + i, j, Two{sums[0][i], sums[1][i]});
    }
}

// u = GLU(W_in LayerNorm(x) + bias).
template <class T>
struct Gated {
  int64_t width;
  const float *gain, *shift;
  double eps;
  const T *w_val, *w_gate;
  const float *b_val, *b_gate;

  template <class Arguments>
  explicit Gated(const Arguments& a)
      : width(a.width),
        gain(a.gain_in),
        shift(a.shift_in),
        eps(a.eps_in),
        w_val(a.w_val),
        w_gate(a.w_gate),
        b_val(a.b_val),
        b_gate(a.b_gate) {}

  // A tile to rows of u from `row` on. kept (N, 2, P) takes values and gates, stats (N, 2) LayerNorm's; null: not
  // wanted.
  void forward(Tile tile, const float* x, Groups u, int64_t row, Half<T>* kept, float* stats) const {
    Scratch scratch;
    const int64_t p = pitch(width), m = tile.count, size = column_size<T>(width);
    Factor<T> a(m, width, scratch);
    float *v = scratch.take<float>(m * PANEL), *g = scratch.take<float>(m * PANEL);
    float* z = scratch.take<float>(ROWS_AT_ONCE * p);
    by_rows(m, [&](auto some, int64_t r) {
      const float* from = x + (tile.first + r) * width;
      const auto s = statistics<some>(from, width, width, eps);
      normalise(from, width, s, gain, shift, width, z, p);
      a.template set<some>(r, z, p);
      for (int i = 0; i < (stats ? some : 0); ++i) s[i].keep(stats, tile.first + r + i);
    });
    const Left<T> left = a;
    for (int64_t j = 0; j < p; j += PANEL) {
      const int64_t n = std::min(PANEL, p - j);
      by_blocks<T>(m, [&](int64_t first, int64_t some) {
        const auto values = gemm_panel(left + first, some, width, w_val + j * size, n, v, PANEL);
        const auto gates = gemm_panel(left + first, some, width, w_gate + j * size, n, g, PANEL);
        const Sigmoid<T> sigmoid;
        for (int64_t r = 0; r < some; ++r)
          for (int64_t i = 0; i < n; i += 2 * W) {
            Two value = values(r, i, load2(b_val + j + i)), gate = gates(r, i, load2(b_gate + j + i));
            if (kept) {
              Half<T>* to = kept + (tile.first + first + r) * 2 * p + j + i;
              store2(to, value);
              store2(to + p, gate);
            }
            store2(u.at(row + first + r, j + i), map(value, gate, [&](Vec v, Vec g) { return v * sigmoid(g); }));
          }
      });
    }
  }
};

template <class T>
inline Two silu(Two x) {
  return map(x, [](Vec v) { return v * sigmoid<T>(v); });
}

// Inference.
template <class T>
struct ConvolutionArguments {
  int64_t threads;         // that may run
  float* y;                // (N, D), the sublayer's output
  const float* x;          // (N, D)
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  const T* w_val;          // packed (D, D), the values' half of W_in
  const T* w_gate;         // packed (D, D), the gates' half
  const float* b_val;      // (P,)
  const float* b_gate;     // (P,)
  const T* w_out;          // packed (D, D)
  const float* taps;       // (P / PITCH, K rounded up to SPAN, PITCH), with BatchNorm's scale in them
  const float* offset;     // (P,), the rest of BatchNorm
  int64_t kernel;          // K
  const float* gain_in;    // (D,), the first LayerNorm's
  const float* shift_in;   // (D,)
  double eps_in;
  const float* b_out;      // (D,)
  const float* gain_out;   // (D,), the last LayerNorm's
  const float* shift_out;  // (D,)
  double eps_out;
};

template <class T>
void convolution(const ConvolutionArguments<T>& a) {
  const Windows all(a);
  const Gated<T> gated(a);
  const Taps taps(a.taps, a.kernel, Taps::before_of(a.kernel));
  const Ending end{a.b_out, a.gain_out, a.shift_out, a.eps_out, a.width, Dropout(nullptr, 0, 0.0)};
  const int64_t width = a.width, p = pitch(width);
  Shares(a.threads, all).run(taps.bytes(all, p), [&](Team& team, int64_t i, int64_t, char* memory) {
    const int64_t start = all.starts[i], length = all.lengths[i];
    const Groups u{reinterpret_cast<float*>(memory), taps.rows(length)};
    if (team.rank == 0) u.clear_around(width, taps.before, length);
    for_tiles(team, length, CONVOLUTION_TILE, [&](int64_t first, int64_t m) {
      gated.forward({start + first, m}, a.x, u, taps.before + first, nullptr, nullptr);
    });
    team.wait();
    for_tiles(team, length, CONVOLUTION_TILE, [&](int64_t first, int64_t m) {
      Scratch scratch;
      Half<T>* s = scratch.take<Half<T>>(m * p);
      float* o = scratch.take<float>(m * p);
      for (int64_t j = 0; j < p; j += PITCH)
        depthwise(u.of(j / PITCH), taps.of(j / PITCH), taps.count, first, m, [&](int64_t t, int64_t k, Two c) {
          store2(s + (t - first) * p + j + k, silu<T>(c + load2(a.offset + j + k)));
        });
      const auto made = products(as_left<T>(s, p, width, m, scratch), m, width, a.w_out, width, o, p, scratch);
      end.forward(made, {start + first, m}, a.x, a.y);
    });
  });
  clear_others(all, a.y, width);
}

// What a window's channels of one group are about: their mean, what rounding took from it, and squared deviations, each
// `p` apart. c (n, PITCH).
inline void group_statistics(const float* c, int64_t n, float* partial, int64_t p) {
  for (int64_t j = 0; j < PITCH; j += W) {
    Vec sum(0.0f), rest(0.0f), squares(0.0f);
    const Vec share(1.0f / n);
    for (int64_t t = 0; t < n; ++t) sum = sum + Vec::loadu(c + t * PITCH + j);
    const Vec mean = sum * share;
    for (int64_t t = 0; t < n; ++t) {
      const Vec apart = Vec::loadu(c + t * PITCH + j) - mean;
      rest = rest + apart;
      squares = at::vec::fmadd(apart, apart, squares);
    }
    mean.store(partial + j);
    (rest * share).store(partial + p + j);
    (squares - rest * rest * share).store(partial + 2 * p + j);
  }
}

// Training, up to the convolution.
template <class T>
struct ConvolutionDepthwiseArguments {
  int64_t threads;  // that may run
  T* kept;          // (N, 2, P), values and gates
  T* c;             // (N, P), the convolved rows
  float* stats_in;  // (N, 2), the first LayerNorm's mean and rstd
  float* partial;   // (B, 3, P), each window's part of BatchNorm's statistics; not written where it has no points
  const float* x;   // (N, D)
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  const T* w_val;          // packed (D, D), the values' half of W_in
  const T* w_gate;         // packed (D, D), the gates' half
  const float* b_val;      // (P,)
  const float* b_gate;     // (P,)
  const float* taps;       // (P / PITCH, K rounded up to SPAN, PITCH)
  int64_t kernel;          // K
  const float* gain_in;    // (D,), the first LayerNorm's
  const float* shift_in;   // (D,)
  double eps_in;
};

template <class T>
void convolution_depthwise(const ConvolutionDepthwiseArguments<T>& a) {
  const Windows all(a);
  const Gated<T> gated(a);
  const Taps taps(a.taps, a.kernel, Taps::before_of(a.kernel));
  const int64_t p = pitch(a.width);
  Shares(a.threads, all).run(taps.bytes(all, p), [&](Team& team, int64_t i, int64_t, char* memory) {
    const int64_t start = all.starts[i], length = all.lengths[i];
    const Groups u{reinterpret_cast<float*>(memory), taps.rows(length)};
    if (team.rank == 0) u.clear_around(a.width, taps.before, length);
    for_tiles(team, length, CONVOLUTION_TILE, [&](int64_t first, int64_t m) {
      gated.forward({start + first, m}, a.x, u, taps.before + first, a.kept, a.stats_in);
    });
    team.wait();
    Scratch scratch;
    float* group = scratch.take<float>(length * PITCH);
    for (int64_t g = team.rank; g < p / PITCH; g += team.size) {
      depthwise(u.of(g), taps.of(g), taps.count, 0, length, [&](int64_t t, int64_t j, Two sum) {
        store2(group + t * PITCH + j, sum);
        store2(a.c + (start + t) * p + g * PITCH + j, sum);
      });
      group_statistics(group, length, a.partial + i * 3 * p + g * PITCH, p);
    }
  });
}

// BatchNorm of convolved rows. statistics (4, P) as from `batch_norm_merge`, scale and offset (D,), padded in
// `scratch`.
struct Norm {
  int64_t width;
  const float *mean, *rest, *rstd, *scale, *offset;

  Norm(const float* statistics, const float* scale, const float* offset, int64_t width, Scratch& scratch)
      : width(width),
        mean(statistics),
        rest(statistics + pitch(width)),
        rstd(statistics + 3 * pitch(width)),
        scale(padded(scale, width, scratch)),
        offset(padded(offset, width, scratch)) {}

  // c centred and scaled.
  template <class T>
  Two unit(const T* c, int64_t j) const {
    return (load2(c + j) - load2(mean + j) - load2(rest + j)) * load2(rstd + j);
  }

  Two apply(Two unit, int64_t j) const { return unit * load2(scale + j) + load2(offset + j); }

 private:
  static const float* padded(const float* vector, int64_t width, Scratch& scratch) {
    float* wide = scratch.take<float>(pitch(width));
    to_half(vector, width, wide);
    return wide;
  }
};

// Training, from the convolved rows to y.
template <class T>
struct ConvolutionOutArguments {
  int64_t threads;          // that may run
  float* y;                 // (N, D), the sublayer's output
  T* product;               // (N, P), W_out's product
  const T* c;               // (N, P), the convolved rows
  const float* statistics;  // (4, P), BatchNorm's, as from `batch_norm_merge`
  const float* scale;       // (D,), BatchNorm's
  const float* offset;      // (D,), BatchNorm's
  const float* x;           // (N, D), the residual
  const int64_t* windows;   // (2, B): each window's first row and length
  int64_t batch;            // B
  int64_t rows;             // N
  int64_t width;            // D
  const T* w_out;           // packed (D, D)
  const float* b_out;       // (D,)
  const float* gain_out;    // (D,), the last LayerNorm's
  const float* shift_out;   // (D,)
  double eps_out;
  const int64_t* seed;  // (1,), dropout's; null: nothing is dropped
  int64_t salt;
  double p;
};

template <class T>
void convolution_out(const ConvolutionOutArguments<T>& a) {
  const Windows all(a);
  Scratch shared;
  const int64_t width = a.width, p = pitch(width);
  const Norm norm(a.statistics, a.scale, a.offset, width, shared);
  const Ending end{a.b_out, a.gain_out, a.shift_out, a.eps_out, width, Dropout(a.seed, a.salt, a.p)};
  auto work = tiles(all, a.threads, CONVOLUTION_TILE);
  parallel_for(a.threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    T* s = scratch.take<T>(m * p);
    float* o = scratch.take<float>(m * p);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t j = 0; j < p; j += 2 * W)
        store2(s + r * p + j, silu<T>(norm.apply(norm.unit(a.c + (first + r) * p, j), j)));
    const auto made = products(Left<T>{s, p}, m, width, a.w_out, width, o, p, scratch);
    for (int64_t r = 0; r < m; ++r) to_half(o + r * p, p, a.product + (first + r) * p);
    end.forward(made, work[i], a.x, a.y);
  });
  clear_others(all, a.y, width);
}

}  // namespace astroco
