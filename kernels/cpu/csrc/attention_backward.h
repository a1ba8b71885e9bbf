// Back through sublayer a: its ending and W_out tile by tile, the heads of each window, W_qkv tile by tile, then the
// gradients of the matrices. All of that chunk by chunk, some windows each, so that what passes from one step to the
// next stays in the shared cache. Scores and their exponentials are made again from q, k and the logarithms of
// softmax's sums.
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

  // A row of scores s and of the gradients dp of probabilities: probabilities p and the gradients ds of scores, both
  // zero beyond n; s and dp have room for a multiple of 2 W.
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
  void tile(int64_t first, int64_t m, const T* keys_across, const T* values_across, const T* keys, float* k_sums,
            float* v_sums) const {
    Scratch scratch;
    const int64_t lds = round_up(n, 2 * W), width = round_up(size, 2 * W), packed = head_size<T>(m, size);
    float *s = scratch.take<float>(m * lds), *dp = scratch.take<float>(m * lds),
          *q_sums = scratch.take<float>(m * width);
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

template <class T>
struct AttentionBackward {
  static constexpr int64_t CHUNK_ROWS = 1024;

  Ending end;
  int64_t width, heads, size;  // D, H, d
  const T *w_out, *w_qkv;      // packed (D, F), (3 F, D)
  float scale;
  float* dx;
  const float *dy, *x;
  const T *qkv, *attended;
  const float* sums;
  const T* product;
  const float* stats;

  int64_t features() const { return heads * size; }
  int64_t stride() const { return pitch(3 * features()); }

  // Windows that lie end to end, and what is made of them: gradients of what was attended (n, F) and of q, k and v
  // (n, pitch(3 F)); x and d_o, of W_out's product, packed as (n, D).
  struct Chunk {
    int64_t first, rows, first_window, windows;
    T *d_attended, *d_qkv, *x, *d_o;
  };

  // Up to what was attended. dx gets the residual's share.
  void outside(Tile tile, const Chunk& chunk, double* d_end) const {
    Scratch scratch;
    const int64_t m = tile.count, p = pitch(width), f = features(), at = tile.first - chunk.first;
    T* d_o = scratch.take<T>(m * p);
    float* c = scratch.take<float>(m * pitch(f));
    for (int64_t r = 0, row = tile.first; r < m; ++r, ++row)
      end.backward(dy + row * width, product + row * p, x + row * width, {stats[2 * row], stats[2 * row + 1]}, row,
                   dx + row * width, d_o + r * p, {d_end, d_end + p, d_end + 2 * p});
    gemm(Left<T>{d_o, p}, m, width, w_out, f, c, pitch(f));
    AttentionHead<T>::store(c, pitch(f), m, f, chunk.d_attended + at * f, f);
    pack_rows(x + tile.first * width, width, m, width, chunk.x, at, chunk.rows);
    pack_rows(d_o, p, m, width, chunk.d_o, at, chunk.rows);
  }

  // One head of the window that starts at row `start`.
  void inside(int64_t start, int64_t n, int64_t head, const Chunk& chunk) const {
    const int64_t ld = stride(), f = features(), at = head * size;
    const T* q = qkv + start * ld + at;
    T* dq = chunk.d_qkv + (start - chunk.first) * ld + at;
    AttentionHead<T>{n,     size,   ld,         f,
                     q,     q + f,  q + 2 * f,  chunk.d_attended + (start - chunk.first) * f + at,
                     dq,    dq + f, dq + 2 * f, sums + start * heads + head,
                     heads, scale}
        .run();
  }

  void into(Tile tile, const Chunk& chunk, double* d_bias) const {
    Scratch scratch;
    const int64_t m = tile.count, p = pitch(width), ld = stride(), f = features();
    T* d = chunk.d_qkv + (tile.first - chunk.first) * ld;
    for (int64_t r = 0; r < m; ++r) std::fill(d + r * ld + 3 * f, d + (r + 1) * ld, T(0.0f));
    add_columns(d, m, ld, d_bias);
    float* c = scratch.take<float>(m * p);
    gemm(Left<T>{d, ld}, m, 3 * f, w_qkv, width, c, p);
    for (int64_t r = 0; r < m; ++r) {
      float* to = dx + (tile.first + r) * width;
      columns(width, [&](int64_t j, int64_t n) { store2(to + j, load2(to + j, n) + load2(c + r * p + j), n); });
    }
  }

  // Adds a chunk's share to d_weights' rows from `first` on, `many`. They may be the last of W_qkv and the first of
  // W_out.
  void block(int64_t first, int64_t many, const Chunk& chunk, float* d_weights) const {
    const int64_t f = features(), p = pitch(width), last = std::min(first + many, 4 * f);
    const int64_t border = std::clamp(3 * f, first, last);
    add_products(chunk.d_qkv + first, stride(), chunk.rows, border - first, chunk.x, width, d_weights + first * p);
    add_products(attended + chunk.first * f + border - 3 * f, f, chunk.rows, last - border, chunk.d_o, width,
                 d_weights + border * p);
  }

  void run(int64_t threads, const Windows& all, Chunk& chunk, float* d_weights, std::vector<double>& ends,
           std::vector<double>& biases) const {
    const auto work = cut({{chunk.first, chunk.rows}}, threads, ATTENTION_TILE);
    const int64_t many = work.size();
    Scratch shared;
    Sums end_sums(many, 3 * pitch(width), shared), bias_sums(many, stride(), shared);
    chunk.d_attended = shared.take<T>(chunk.rows * features());
    chunk.d_qkv = shared.take<T>(chunk.rows * stride());
    chunk.x = shared.take<T>(round_up(chunk.rows, STEP<T>) * pitch(width));
    chunk.d_o = shared.take<T>(round_up(chunk.rows, STEP<T>) * pitch(width));
    parallel_for(threads, many, [&](int64_t i) { outside(work[i], chunk, end_sums.of(i)); });
    parallel_for(threads, chunk.windows * heads, [&](int64_t i) {
      const int64_t window = chunk.first_window + i / heads;
      if (all.lengths[window] > 0) inside(all.starts[window], all.lengths[window], i % heads, chunk);
    });
    const int64_t each = block_columns(4 * features(), threads), blocks = (4 * features() + each - 1) / each;
    parallel_for(threads, blocks + many, [&](int64_t i) {
      i < blocks ? block(i * each, each, chunk, d_weights) : into(work[i - blocks], chunk, bias_sums.of(i - blocks));
    });
    end_sums.add_to(ends);
    bias_sums.add_to(biases);
  }
};

// dx (N, D); d_weights (4 F, P), of W_qkv and of W_out's transpose; d_bias (pitch(3 F),) of b_qkv, d_end (3, D) of
// b_out, gain and shift. The rest is as in `attention`.
template <class T>
void attention_backward(int64_t threads, float* dx, float* d_weights, float* d_bias, float* d_end, const float* dy,
                        const float* x, const T* qkv, const T* attended, const float* sums, const T* product,
                        const float* stats, const int64_t* windows, int64_t batch, int64_t rows, int64_t width,
                        int64_t heads, const T* w_out, const T* w_qkv, const float* b_out, const float* gain,
                        const int64_t* seed, int64_t salt, double drop) {
  using Op = AttentionBackward<T>;
  const Windows all(windows, batch, rows);
  const int64_t size = round_up(width / heads, STEP<T>), p = pitch(width);
  const Op op{{b_out, gain, nullptr, 0.0, width, Dropout(seed, salt, drop)},
              width,
              heads,
              size,
              w_out,
              w_qkv,
              float(1 / std::sqrt(double(width / heads))),
              dx,
              dy,
              x,
              qkv,
              attended,
              sums,
              product,
              stats};
  std::fill(d_weights, d_weights + 4 * op.features() * p, 0.0f);
  std::vector<double> ends(3 * p, 0.0), biases(op.stride(), 0.0);
  for (int64_t next = 0; next < batch;) {
    typename Op::Chunk chunk{all.starts[next], 0, next, 0};
    do {
      chunk.rows += all.lengths[next++];
    } while (next < batch && all.starts[next] == chunk.first + chunk.rows &&
             chunk.rows + all.lengths[next] <= std::max(Op::CHUNK_ROWS, threads * ATTENTION_TILE));
    chunk.windows = next - chunk.first_window;
    if (chunk.rows > 0) op.run(threads, all, chunk, d_weights, ends, biases);
  }
  clear_others(all, dx, width);
  std::copy(biases.begin(), biases.end(), d_bias);
  for (int64_t part = 0; part < 3; ++part) std::copy_n(ends.begin() + part * p, width, d_end + part * width);
}

}  // namespace astroco
