// Back through sublayer a: its ending and W_out row by row, the heads of each window, W_qkv row by row.
//
// Scores and their exponentials are made again from q, k and the logarithms of softmax's sums.
#pragma once

#include "attention.h"
#include "weight_gradient.h"

namespace astroco {

constexpr int64_t BACKWARD_TILE = 16 * ROWS;  // queries at a time: sums over them are read and written once for all

// One head of one window. q, k, v and their gradients have rows of `ld`, the gradient of what was attended
// of `features`.
template <class T>
struct AttentionHead {
  int64_t n, size, ld, features;
  const T *q, *k, *v, *d_attended;
  T *dq, *dk, *dv;
  const float* sums;  // of the head, rows of `heads`
  int64_t heads;
  float scale;

  // A row of scores s and of the gradients dp of probabilities: probabilities p and the gradients ds of scores, both zero
  // beyond n; s and dp have room for a multiple of 2 W.
  void probabilities(float* s, float* dp, int64_t row, T* p, T* ds) const {
    const int64_t end = round_up(n, 2 * W);
    std::fill(s + n, s + end, -1e30f);
    std::fill(dp + n, dp + end, 0.0f);
    const Vec by(scale * LOG2_E), minus(-sums[row * heads]), factor(scale);
    Two total{Vec(0.0f), Vec(0.0f)}, along = total;
    for (int64_t j = 0; j < end; j += 2 * W) {
      Two e = map(load2(s + j), [&](Vec v) { return exp2(at::vec::fmadd(v, by, minus)); });
      store2(s + j, e);
      total = total + e;
      along = along + e * load2(dp + j);
    }
    // Their sum is one but for the logarithm's rounding, which all of a row would share and columns' sums would add up.
    const Vec one(1.0f / sum(total)), mean(sum(along) / sum(total));
    for (int64_t j = 0; j < end; j += 2 * W) {
      Two e = load2(s + j) * one;
      store2(p + j, e);
      store2(ds + j, map(e, load2(dp + j), [&](Vec e, Vec d) { return e * (d - mean) * factor; }));
    }
  }

  static void store(const float* from, int64_t from_ld, int64_t rows, int64_t size, T* to, int64_t to_ld) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < size; j += 2 * W) store_some(to + r * to_ld + j, load2(from + r * from_ld + j), size - j);
  }

  void run() const {
    Scratch scratch;
    const int64_t across = head_size<T>(size, n), down = head_size<T>(n, size), width = round_up(size, 2 * W);
    T *keys_across = scratch.take<T>(across), *values_across = scratch.take<T>(across), *keys = scratch.take<T>(down);
    float *k_sums = scratch.take<float>(n * width), *v_sums = scratch.take<float>(n * width);
    pack_transposed(keys_across, k, ld, n, size);
    pack_transposed(values_across, v, ld, n, size);
    pack_upright(keys, k, ld, n, size);
    std::fill(k_sums, k_sums + n * width, 0.0f);
    std::fill(v_sums, v_sums + n * width, 0.0f);
    for (int64_t first = 0; first < n; first += BACKWARD_TILE)
      tile(first, std::min(BACKWARD_TILE, n - first), keys_across, values_across, keys, k_sums, v_sums);
    store(k_sums, width, n, size, dk, ld);
    store(v_sums, width, n, size, dv, ld);
  }

 private:
  // Some queries' share.
  void tile(
      int64_t first, int64_t m, const T* keys_across, const T* values_across, const T* keys, float* k_sums,
      float* v_sums) const {
    Scratch scratch;
    const int64_t lds = round_up(n, 2 * W), width = round_up(size, 2 * W), packed = head_size<T>(m, size);
    float *s = scratch.take<float>(m * lds), *dp = scratch.take<float>(m * lds), *q_sums = scratch.take<float>(m * width);
    T *p = scratch.take<T>(m * lds), *ds = scratch.take<T>(m * lds);
    T *queries = scratch.take<T>(packed), *up = scratch.take<T>(packed);
    head_product(Left<T>{q + first * ld, ld}, m, size, keys_across, n, s, lds);
    head_product(Left<T>{d_attended + first * features, features}, m, size, values_across, n, dp, lds);
    for (int64_t r = 0; r < m; ++r) probabilities(s + r * lds, dp + r * lds, first + r, p + r * lds, ds + r * lds);
    head_product(Left<T>{ds, lds}, m, n, keys, size, q_sums, width);
    store(q_sums, width, m, size, dq + first * ld, ld);
    pack_upright(queries, q + first * ld, ld, m, size);
    pack_upright(up, d_attended + first * features, features, m, size);
    head_product(transposed(ds, lds, m, n, scratch), n, m, queries, size, k_sums, width, true);
    head_product(transposed(p, lds, m, n, scratch), n, m, up, size, v_sums, width, true);
  }
};

// Column sums of rows (m, n), n a multiple of 2 W, added to `sums`; in float only as many as do no harm.
template <class T>
inline void add_columns(const T* rows, int64_t m, int64_t n, double* sums) {
  for (int64_t j = 0; j < n; j += 2 * W)
    for (int64_t r0 = 0; r0 < m; r0 += 16) {
      Two some{Vec(0.0f), Vec(0.0f)};
      for (int64_t r = r0; r < std::min(m, r0 + 16); ++r) some = some + load2(rows + r * n + j);
      add_to(sums + j, some, 2 * W);
    }
}

// dx (N, D); for the gradients of matrices half rows d_o (N, P), of W_out's product, and d_qkv (N, pitch(3 F)); those of
// vectors: d_bias (pitch(3 F),) of b_qkv, d_end (3, D) of b_out, gain and shift. w_out is packed as (D, F), w_qkv as
// (3 F, D). The rest is as in `attention`.
template <class T>
void attention_backward(
    int64_t threads, float* dx, T* d_o, T* d_qkv, float* d_bias, float* d_end, const float* dy, const float* x,
    const T* qkv, const float* sums, const T* product, const float* stats, const int64_t* windows,
    int64_t batch, int64_t rows, int64_t width, int64_t heads, const T* w_out, const T* w_qkv, const float* b_out,
    const float* gain, const int64_t* seed, int64_t salt, double drop) {
  const Windows all(windows, batch, rows);
  const Ending end{b_out, gain, nullptr, 0.0, width, Dropout(seed, salt, drop)};
  const int64_t size = round_up(width / heads, STEP<T>), f = heads * size, ld = pitch(3 * f), p = pitch(width);
  const float scale = float(1 / std::sqrt(double(width / heads)));
  const auto work = tiles(all, threads, ATTENTION_TILE);
  Scratch shared;
  T* d_attended = shared.take<T>(rows * f);
  Sums ends(work.size(), 3 * p, shared), biases(work.size(), ld, shared);

  parallel_for(threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    double* sums = ends.of(i);
    for (int64_t row = first; row < first + m; ++row)
      end.backward(dy + row * width, product + row * p, x + row * width, {stats[2 * row], stats[2 * row + 1]}, row,
                   dx + row * width, d_o + row * p, {sums, sums + p, sums + 2 * p});
    float* c = scratch.take<float>(m * pitch(f));
    gemm(Left<T>{d_o + first * p, p}, m, width, w_out, f, c, pitch(f));
    AttentionHead<T>::store(c, pitch(f), m, f, d_attended + first * f, f);
  });

  std::vector<int64_t> order(batch);
  for (int64_t i = 0; i < batch; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return all.lengths[a] > all.lengths[b]; });
  parallel_for(threads, batch * heads, [&](int64_t i) {
    const int64_t start = all.starts[order[i / heads]], head = i % heads, at = start * ld + head * size;
    const int64_t out = start * f + head * size;
    AttentionHead<T>{all.lengths[order[i / heads]], size, ld, f, qkv + at, qkv + at + f, qkv + at + 2 * f,
                     d_attended + out, d_qkv + at, d_qkv + at + f, d_qkv + at + 2 * f,
                     sums + start * heads + head, heads, scale}.run();
  });

  parallel_for(threads, work.size(), [&](int64_t i) {
    Scratch scratch;
    const int64_t first = work[i].first, m = work[i].count;
    for (int64_t row = first; row < first + m; ++row) std::fill(d_qkv + row * ld + 3 * f, d_qkv + (row + 1) * ld, T(0.0f));
    add_columns(d_qkv + first * ld, m, ld, biases.of(i));
    float* c = scratch.take<float>(m * p);
    gemm(Left<T>{d_qkv + first * ld, ld}, m, 3 * f, w_qkv, width, c, p);
    for (int64_t r = 0; r < m; ++r) {
      float* to = dx + (first + r) * width;
      columns(width, [&](int64_t j, int64_t n) { store2(to + j, load2(to + j, n) + load2(c + r * p + j), n); });
    }
  });
  clear_others(all, dx, width);
  biases.total(0, ld, d_bias);
  for (int64_t part = 0; part < 3; ++part) ends.total(part * p, width, d_end + part * width);
}

}  // namespace astroco
