// Sublayer a: LayerNorm(x + Dropout(W_out attention(W_qkv x))), window by window: what lies between x and y stays in a
// core's cache. Where windows are too few for the threads, several threads share one.
//
// A head has d columns, rounded up to STEP with zeros; F = H d. q, k and v lie side by side in rows of pitch(3 F), as
// (3, H, d); what is attended in rows of F, as (H, d).
#pragma once

#include "heads.h"
#include "teams.h"

namespace astroco {

constexpr int64_t ATTENTION_TILE = 16 * ROWS;                   // rows of the projections
constexpr int64_t QUERY_TILE = round_up(4 * ROWS, BLOCK_ROWS);  // queries whose scores lie in the fastest cache

// What one window's threads share.
template <class H>
struct WindowSpace {
  H *qkv, *attended, *keys, *values;
};

template <class T, class H = Half<T>>
struct AttentionArguments {
  int64_t threads;         // that may run
  float* y;                // (N, D), the sublayer's output
  H* qkv;                  // (N, pitch(3 F)), where `keep`: q, k and v. Rows that are not real are written in y only
  H* attended;             // (N, F), where `keep`
  float* logsumexp;        // (N, H), where `keep`: the logarithm to base 2 of softmax's sum, for each head
  H* product;              // (N, P), where `keep`: W_out's product, half rows
  const float* x;          // (N, D)
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  const T* w_qkv;          // packed (D, 3 F)
  const float* b_qkv;      // (pitch(3 F),)
  const T* w_out;          // packed (F, D)
  const float* b_out;      // (D,)
  const float* gain;       // (D,), LayerNorm's
  const float* shift;      // (D,)
  int64_t heads;           // H
  double eps;              // LayerNorm's
  const int64_t* seed;     // (1,), dropout's; null: nothing is dropped
  int64_t salt;
  double p;
  int64_t keep;  // whether backward will follow
};

// f(i) for the part of 0 .. units - 1 that is this member's.
template <class F>
inline void share(const Team& team, int64_t units, F&& f) {
  for (int64_t i = units * team.rank / team.size; i < units * (team.rank + 1) / team.size; ++i) f(i);
}

template <class T>
struct Attention {
  using H = Half<T>;

  const AttentionArguments<T>& a;
  int64_t size;  // d
  float scale;   // of scores
  Ending end;

  explicit Attention(const AttentionArguments<T>& a)
      : a(a),
        size(round_up(a.width / a.heads, STEP<H>)),
        scale(float(1 / std::sqrt(double(a.width / a.heads)))),
        end{a.b_out, a.gain, a.shift, a.eps, a.width, Dropout(a.seed, a.salt, a.p)} {}

  int64_t features() const { return a.heads * size; }
  int64_t stride() const { return pitch(3 * features()); }
  // How many numbers of a row of probabilities are multiplied with values: with AMX whole tiles, whose last are zeros,
  // so that the registers keep their shapes.
  static int64_t keys(int64_t n) {
#ifdef __AMX_BF16__
    if constexpr (!std::is_same_v<H, float>) return round_up(n, TILE * STEP<H>);
#endif
    return n;
  }

  // The numbers that a window's space takes, and the parts of it.
  int64_t space(int64_t rows) const {
    return rows * stride() + round_up(rows * features(), PITCH) +
           a.heads * (head_size<H>(size, rows) + head_size<H>(keys(rows), size));
  }
  WindowSpace<H> space(int64_t rows, H* memory) const {
    H *attended = memory + rows * stride(), *keys = attended + round_up(rows * features(), PITCH);
    return {memory, attended, keys, keys + a.heads * head_size<H>(size, rows)};
  }

  // One window, by all members of a team, each of which calls this.
  void window(Team& team, Tile w, WindowSpace<H> at) const {
    const int64_t n = w.count, tiles = std::max<int64_t>((n + QUERY_TILE / 2) / QUERY_TILE, 1);
    if (a.keep) {
      at.qkv = a.qkv + w.first * stride();
      at.attended = a.attended + w.first * features();
    }
    const float* x = a.x + w.first * a.width;
    for_tiles(team, n, ATTENTION_TILE, [&](int64_t first, int64_t m) { project({first, m}, x, at.qkv); });
    team.wait();
    share(team, 2 * a.heads, [&](int64_t i) { pack_head(i / 2, i % 2, n, at); });
    team.wait();
    share(team, a.heads * tiles, [&](int64_t i) {
      const int64_t tile = i % tiles, first = tile * QUERY_TILE;  // the last may have half a tile more
      attend(i / tiles, {first, tile + 1 < tiles ? QUERY_TILE : n - first}, w, at);
    });
    team.wait();
    for_tiles(team, n, ATTENTION_TILE, [&](int64_t first, int64_t m) { finish({first, m}, w.first, at); });
  }

 private:
  // q, k and v of some rows.
  void project(Tile rows, const float* x, H* qkv) const {
    Scratch scratch;
    const int64_t m = rows.count, ld = stride(), size = column_size<T>(a.width);
    Left<T> left = as_left<T>(x + rows.first * a.width, a.width, a.width, m, scratch);
    float* c = scratch.take<float>(m * PANEL);
    qkv += rows.first * ld;
    for (int64_t j = 0; j < ld; j += PANEL) {
      const int64_t n = std::min(PANEL, ld - j);
      by_blocks<T>(m, [&](int64_t first, int64_t some) {
        const auto made = gemm_panel(left + first, some, a.width, a.w_qkv + j * size, n, c, PANEL);
        for (int64_t r = 0; r < some; ++r)
          for (int64_t i = 0; i < n; i += 2 * W)
            store2(qkv + (first + r) * ld + j + i, made(r, i, load2(a.b_qkv + j + i)));
      });
    }
  }

  // A head's keys or values as right factors.
  void pack_head(int64_t head, bool value, int64_t n, const WindowSpace<H>& at) const {
    const H* rows = at.qkv + (value ? 2 : 1) * features() + head * size;
    if (value)
      pack_upright(at.values + head * head_size<H>(keys(n), size), rows, stride(), n, size, keys(n));
    else
      pack_transposed(at.keys + head * head_size<H>(size, n), rows, stride(), n, size);
  }

  // What the queries of some rows find among the keys of their window. Probabilities p take the place of the scores s.
  void attend(int64_t head, Tile rows, Tile window, const WindowSpace<H>& at) const {
    Scratch scratch;
    const int64_t n = window.count, m = rows.count, lds = round_up(n, 2 * W), ldp = lds * STEP<H>,
                  ldo = round_up(size, 2 * W);
    float *s = scratch.take<float>(m * lds), *o = scratch.take<float>(m * ldo);
    Softmax* found = scratch.take<Softmax>(m);
    H* p = reinterpret_cast<H*>(s);
    Left<H> q{at.qkv + rows.first * stride() + head * size, stride()};
    head_product(q, m, size, at.keys + head * head_size<H>(size, n), n, s, lds);
    by_rows(m, [&](auto some, int64_t r) {
      softmax<some>(s + r * lds, lds, n, scale * LOG2_E, p + r * ldp, ldp, found + r);
    });
    for (int64_t r = 0; r < (a.keep ? m : 0); ++r)
      a.logsumexp[(window.first + rows.first + r) * a.heads + head] =
          found[r].largest * (scale * LOG2_E) + std::log2(found[r].sum);
    head_product(Left<H>{p, ldp}, m, keys(n), at.values + head * head_size<H>(keys(n), size), size, o, ldo);
    for (int64_t r = 0; r < m; ++r) {
      H* to = at.attended + (rows.first + r) * features() + head * size;
      const Vec inverse(1.0f / found[r].sum);
      for (int64_t j = 0; j < size; j += 2 * W) store_some(to + j, load2(o + r * ldo + j) * inverse, size - j);
    }
  }

  // W_out and what follows it; `start` is the window's first row.
  void finish(Tile rows, int64_t start, const WindowSpace<H>& at) const {
    Scratch scratch;
    const int64_t m = rows.count, p = pitch(a.width), f = features();
    float* o = scratch.take<float>(m * p);
    const auto left = as_left<T>(at.attended + rows.first * f, f, f, m, scratch);
    const auto made = products(left, m, f, a.w_out, a.width, o, p, scratch);
    const int64_t first = start + rows.first;
    for (int64_t r = 0; r < (a.keep ? m : 0); ++r) to_half(o + r * p, p, a.product + (first + r) * p);
    end.forward(made, {first, m}, a.x, a.y);
  }
};

template <class T>
void attention(const AttentionArguments<T>& a) {
  const Windows all(a);
  const Attention<T> op(a);
  const int64_t longest = a.batch ? *std::max_element(all.lengths, all.lengths + a.batch) : 0;
  Shares(a.threads, all).run(op.space(longest) * sizeof(Half<T>), [&](Team& team, int64_t i, int64_t, char* memory) {
    const Tile window{all.starts[i], all.lengths[i]};
    op.window(team, window, op.space(window.count, reinterpret_cast<Half<T>*>(memory)));
  });
  clear_others(all, a.y, a.width);
}

}  // namespace astroco
