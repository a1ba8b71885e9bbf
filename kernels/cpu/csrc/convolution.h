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
  const T *w_val, *w_gate;      // packed (D, D)
  const float *b_val, *b_gate;  // (P,)

  // A tile to rows of u from `row` on. kept (N, 2, P) takes values and gates, stats (N, 2); null: not wanted.
  void forward(Tile tile, const float* x, Groups u, int64_t row, T* kept, float* stats) const {
    Scratch scratch;
    const int64_t p = pitch(width), m = tile.count, depth = round_up(width, STEP<T>);
    T* a = scratch.take<T>(m * p);
    float *v = scratch.take<float>(m * PANEL), *g = scratch.take<float>(m * PANEL), *z = scratch.take<float>(p);
    for (int64_t r = 0; r < m; ++r) {
      const float* from = x + (tile.first + r) * width;
      Statistics s = statistics(from, width, eps);
      normalise(from, s, gain, shift, width, z);
      to_half(z, width, a + r * p);
      if (stats) {
        stats[2 * (tile.first + r)] = s.mean;
        stats[2 * (tile.first + r) + 1] = s.rstd;
      }
    }
    for (int64_t j = 0; j < p; j += PANEL) {
      const int64_t n = std::min(PANEL, p - j);
      gemm_panel(Left<T>{a, p}, m, width, w_val + j * depth, n, v, PANEL);
      gemm_panel(Left<T>{a, p}, m, width, w_gate + j * depth, n, g, PANEL);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t i = 0; i < n; i += 2 * W) {
          Two value = load2(v + r * PANEL + i) + load2(b_val + j + i);
          Two gate = load2(g + r * PANEL + i) + load2(b_gate + j + i);
          if (kept) {
            T* to = kept + (tile.first + r) * 2 * p + j + i;
            store2(to, value);
            store2(to + p, gate);
          }
          store2(u.at(row + r, j + i), map(value, gate, [](Vec v, Vec g) { return v * sigmoid<T>(g); }));
        }
    }
  }
};

template <class T>
inline Two silu(Two x) {
  return map(x, [](Vec v) { return v * sigmoid<T>(v); });
}

// Inference. taps (P / PITCH, count, PITCH) have BatchNorm's scale in them, offset (P,) is the rest of it.
template <class T>
void convolution(int64_t threads, float* y, const float* x, const int64_t* windows, int64_t batch, int64_t rows,
                 int64_t width, const T* w_val, const T* w_gate, const float* b_val, const float* b_gate,
                 const T* w_out, const float* taps, const float* offset, int64_t count, int64_t before,
                 const float* gain_in, const float* shift_in, double eps_in, const float* b_out, const float* gain,
                 const float* shift, double eps) {
  Windows all(windows, batch, rows);
  const Gated<T> gated{width, gain_in, shift_in, eps_in, w_val, w_gate, b_val, b_gate};
  const Taps filter{taps, count, before};
  const Ending end{b_out, gain, shift, eps, width, Dropout(nullptr, 0, 0.0)};
  const int64_t p = pitch(width);
  Shares(threads, all).run(filter.bytes(all, p), [&](Team& team, int64_t i, int64_t, char* memory) {
    const int64_t start = all.starts[i], length = all.lengths[i];
    const Groups u{reinterpret_cast<float*>(memory), filter.rows(length)};
    if (team.rank == 0) u.clear_around(width, before, length);
    for_tiles(team, length, CONVOLUTION_TILE, [&](int64_t first, int64_t m) {
      gated.forward({start + first, m}, x, u, before + first, nullptr, nullptr);
    });
    team.wait();
    for_tiles(team, length, CONVOLUTION_TILE, [&](int64_t first, int64_t m) {
      Scratch scratch;
      T* s = scratch.take<T>(m * p);
      float* o = scratch.take<float>(m * p);
      for (int64_t j = 0; j < p; j += PITCH)
        depthwise(u.of(j / PITCH), filter.of(j / PITCH), count, first, m, [&](int64_t t, int64_t k, Two c) {
          store2(s + (t - first) * p + j + k, silu<T>(c + load2(offset + j + k)));
        });
      gemm(Left<T>{s, p}, m, width, w_out, width, o, p);
      for (int64_t r = 0; r < m; ++r) {
        const int64_t row = start + first + r;
        end.forward(o + r * p, x + row * width, row, y + row * width);
      }
    });
  });
  clear_others(all, y, width);
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

// Training, up to the convolution: values and gates kept (N, 2, P), convolved rows c (N, P), LayerNorm's stats (N, 2),
// and each window's part of BatchNorm's statistics, (B, 3, P); of windows without points nothing.
template <class T>
void convolution_depthwise(int64_t threads, T* kept, T* c, float* stats, float* partial, const float* x,
                           const int64_t* windows, int64_t batch, int64_t rows, int64_t width, const T* w_val,
                           const T* w_gate, const float* b_val, const float* b_gate, const float* taps, int64_t count,
                           int64_t before, const float* gain, const float* shift, double eps) {
  Windows all(windows, batch, rows);
  const Gated<T> gated{width, gain, shift, eps, w_val, w_gate, b_val, b_gate};
  const Taps filter{taps, count, before};
  const int64_t p = pitch(width);
  Shares(threads, all).run(filter.bytes(all, p), [&](Team& team, int64_t i, int64_t, char* memory) {
    const int64_t start = all.starts[i], length = all.lengths[i];
    const Groups u{reinterpret_cast<float*>(memory), filter.rows(length)};
    if (team.rank == 0) u.clear_around(width, before, length);
    for_tiles(team, length, CONVOLUTION_TILE,
              [&](int64_t first, int64_t m) { gated.forward({start + first, m}, x, u, before + first, kept, stats); });
    team.wait();
    Scratch scratch;
    float* group = scratch.take<float>(length * PITCH);
    for (int64_t g = team.rank; g < p / PITCH; g += team.size) {
      depthwise(u.of(g), filter.of(g), count, 0, length, [&](int64_t t, int64_t j, Two sum) {
        store2(group + t * PITCH + j, sum);
        store2(c + (start + t) * p + g * PITCH + j, sum);
      });
      group_statistics(group, length, partial + i * 3 * p + g * PITCH, p);
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

// Training, from the convolved rows to y; product (N, P) and stats (N, 2) are for backward.
template <class T>
void convolution_out(int64_t threads, float* y, T* product, float* stats, const T* c, const float* statistics,
                     const float* scale, const float* offset, const float* x, const int64_t* windows, int64_t batch,
                     int64_t rows, int64_t width, const T* w_out, const float* b_out, const float* gain,
                     const float* shift, double eps, const int64_t* seed, int64_t salt, double drop) {
  Windows all(windows, batch, rows);
  Scratch shared;
  const Norm norm(statistics, scale, offset, width, shared);
  const Ending end{b_out, gain, shift, eps, width, Dropout(seed, salt, drop)};
  const int64_t p = pitch(width);
  auto work = tiles(all, threads, CONVOLUTION_TILE);
  parallel_for(threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    T* s = scratch.take<T>(m * p);
    float* o = scratch.take<float>(m * p);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t j = 0; j < p; j += 2 * W)
        store2(s + r * p + j, silu<T>(norm.apply(norm.unit(c + (first + r) * p, j), j)));
    gemm(Left<T>{s, p}, m, width, w_out, width, o, p);
    for (int64_t r = 0, row = first; r < m; ++r, ++row) {
      to_half(o + r * p, p, product + row * p);
      Statistics found = end.forward(o + r * p, x + row * width, row, y + row * width);
      stats[2 * row] = found.mean;
      stats[2 * row + 1] = found.rstd;
    }
  });
  clear_others(all, y, width);
}

}  // namespace astroco
