// Sublayer a: LayerNorm(x + Dropout(W_out attention(W_qkv x))), window by window: what lies between x and y stays in a
// core's cache. Where windows are too few for the threads, several threads share one.
//
// A head has d columns, rounded up to STEP with zeros; F = H d. q, k and v lie side by side in rows of pitch(3 F), as
// (3, H, d); what is attended in rows of F, as (H, d).
#pragma once

#include "heads.h"
#include "teams.h"

namespace astroco {

constexpr int64_t ATTENTION_TILE = 16 * ROWS;  // rows of the projections
constexpr int64_t QUERY_TILE = 4 * ROWS;       // queries whose scores lie in the fastest cache

// What one window's threads share.
template <class T>
struct WindowSpace {
  T *qkv, *attended, *keys, *values;
};

// What training keeps, a row of each per row of x: q, k and v; what was attended; of each head the logarithm to base 2
// of softmax's sum; W_out's product, half rows; the norm's mean and deviation.
template <class T>
struct AttentionKept {
  T *qkv, *attended;
  float* sums;
  T* product;
  float* stats;
};

// f(i) for the part of 0 .. units - 1 that is this member's.
template <class F>
inline void share(const Team& team, int64_t units, F&& f) {
  for (int64_t i = units * team.rank / team.size; i < units * (team.rank + 1) / team.size; ++i) f(i);
}

template <class T>
struct Attention {
  int64_t width, heads, size;  // D, H, d
  const T *w_qkv, *w_out;      // packed (D, 3 F), (F, D)
  const float* b_qkv;          // (pitch(3 F),)
  float scale;                 // of scores
  Ending end;

  int64_t features() const { return heads * size; }
  int64_t stride() const { return pitch(3 * features()); }

  // The numbers that a window's space takes, and the parts of it.
  int64_t space(int64_t rows) const {
    return rows * stride() + round_up(rows * features(), PITCH) +
           heads * (head_size<T>(size, rows) + head_size<T>(rows, size));
  }
  WindowSpace<T> space(int64_t rows, T* memory) const {
    T *attended = memory + rows * stride(), *keys = attended + round_up(rows * features(), PITCH);
    return {memory, attended, keys, keys + heads * head_size<T>(size, rows)};
  }

  // One window, by all members of a team, each of which calls this.
  void window(Team& team, Tile w, const float* x, float* y, WindowSpace<T> at, const AttentionKept<T>& kept) const {
    const int64_t n = w.count, tiles = (n + QUERY_TILE - 1) / QUERY_TILE;
    if (kept.qkv) {
      at.qkv = kept.qkv + w.first * stride();
      at.attended = kept.attended + w.first * features();
    }
    x += w.first * width;
    y += w.first * width;
    for_tiles(team, n, ATTENTION_TILE, [&](int64_t first, int64_t m) { project({first, m}, x, at.qkv); });
    team.wait();
    share(team, 2 * heads, [&](int64_t i) { pack_head(i / 2, i % 2, n, at); });
    team.wait();
    share(team, heads * tiles, [&](int64_t i) {
      const int64_t first = i % tiles * QUERY_TILE;
      float* sums = kept.sums ? kept.sums + w.first * heads : nullptr;
      attend(i / tiles, {first, std::min(QUERY_TILE, n - first)}, n, at, sums);
    });
    team.wait();
    for_tiles(team, n, ATTENTION_TILE, [&](int64_t first, int64_t m) { finish({first, m}, w.first, x, y, at, kept); });
  }

 private:
  // q, k and v of some rows.
  void project(Tile rows, const float* x, T* qkv) const {
    Scratch scratch;
    const int64_t m = rows.count, ld = stride(), depth = round_up(width, STEP<T>);
    Left<T> a = as_left<T>(x + rows.first * width, width, m, scratch);
    float* c = scratch.take<float>(m * PANEL);
    qkv += rows.first * ld;
    for (int64_t j = 0; j < ld; j += PANEL) {
      const int64_t n = std::min(PANEL, ld - j);
      gemm_panel(a, m, width, w_qkv + j * depth, n, c, PANEL);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t i = 0; i < n; i += 2 * W)
          store2(qkv + r * ld + j + i, load2(c + r * PANEL + i) + load2(b_qkv + j + i));
    }
  }

  // A head's keys or values as right factors.
  void pack_head(int64_t head, bool value, int64_t n, const WindowSpace<T>& at) const {
    const T* rows = at.qkv + (value ? 2 : 1) * features() + head * size;
    if (value)
      pack_upright(at.values + head * head_size<T>(n, size), rows, stride(), n, size);
    else
      pack_transposed(at.keys + head * head_size<T>(size, n), rows, stride(), n, size);
  }

  // What some rows' queries find among n keys. P takes the place of the scores.
  void attend(int64_t head, Tile rows, int64_t n, const WindowSpace<T>& at, float* sums) const {
    Scratch scratch;
    const int64_t m = rows.count, lds = round_up(n, 2 * W), ldp = lds * STEP<T>, ldo = round_up(size, 2 * W);
    float *s = scratch.take<float>(m * lds), *o = scratch.take<float>(m * ldo), *inverse = scratch.take<float>(m);
    T* p = reinterpret_cast<T*>(s);
    Left<T> q{at.qkv + rows.first * stride() + head * size, stride()};
    head_product(q, m, size, at.keys + head * head_size<T>(size, n), n, s, lds);
    for (int64_t r = 0; r < m; ++r) {
      Softmax found = softmax(s + r * lds, n, scale * LOG2_E, p + r * ldp);
      inverse[r] = 1.0f / found.sum;
      if (sums) sums[(rows.first + r) * heads + head] = found.largest * (scale * LOG2_E) + std::log2(found.sum);
    }
    head_product(Left<T>{p, ldp}, m, n, at.values + head * head_size<T>(n, size), size, o, ldo);
    for (int64_t r = 0; r < m; ++r) {
      T* to = at.attended + (rows.first + r) * features() + head * size;
      for (int64_t j = 0; j < size; j += 2 * W) store_some(to + j, load2(o + r * ldo + j) * Vec(inverse[r]), size - j);
    }
  }

  // W_out and what follows it; `start` is the window's first row.
  void finish(Tile rows, int64_t start, const float* x, float* y, const WindowSpace<T>& at,
              const AttentionKept<T>& kept) const {
    Scratch scratch;
    const int64_t m = rows.count, p = pitch(width), f = features();
    float* o = scratch.take<float>(m * p);
    gemm(Left<T>{at.attended + rows.first * f, f}, m, f, w_out, width, o, p);
    for (int64_t r = 0; r < m; ++r) {
      const int64_t within = rows.first + r, row = start + within;
      if (kept.product) to_half(o + r * p, p, kept.product + row * p);
      Statistics s = end.forward(o + r * p, x + within * width, row, y + within * width);
      if (kept.stats) {
        kept.stats[2 * row] = s.mean;
        kept.stats[2 * row + 1] = s.rstd;
      }
    }
  }
};

// y (N, D) of x (N, D). Backward's needs are kept where qkv is not null.
template <class T>
void attention(int64_t threads, float* y, T* qkv, T* attended, float* sums, T* product, float* stats, const float* x,
               const int64_t* windows, int64_t batch, int64_t rows, int64_t width, int64_t heads, const T* w_qkv,
               const T* w_out, const float* b_qkv, const float* b_out, const float* gain, const float* shift,
               double eps, const int64_t* seed, int64_t salt, double p) {
  const Windows all(windows, batch, rows);
  const int64_t size = width / heads;
  const Attention<T> op{width,
                        heads,
                        round_up(size, STEP<T>),
                        w_qkv,
                        w_out,
                        b_qkv,
                        float(1 / std::sqrt(double(size))),
                        {b_out, gain, shift, eps, width, Dropout(seed, salt, p)}};
  const int64_t longest = batch ? *std::max_element(all.lengths, all.lengths + batch) : 0;
  Shares(threads, all).run(op.space(longest) * sizeof(T), [&](Team& team, int64_t i, int64_t, char* memory) {
    const Tile window{all.starts[i], all.lengths[i]};
    op.window(team, window, x, y, op.space(window.count, reinterpret_cast<T*>(memory)),
              {qkv, attended, sums, product, stats});
  });
  clear_others(all, y, width);
}

}  // namespace astroco
