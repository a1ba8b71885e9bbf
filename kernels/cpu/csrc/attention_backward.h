// Back through sublayer a: its ending and W_out tile by tile, then the heads of each window, then W_qkv tile by tile,
// and the gradients of the matrices. This is done for some windows (a chunk) at a time, so that what passes from one
// step to the next stays in the shared cache. Scores and their exponentials are computed again from q, k and the
// logarithms of softmax's sums.
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
  const float* logsumexp;  // of the head, rows of `heads`
  int64_t heads;
  float scale;

  // A row of scores s and of the gradients dp of probabilities: probabilities p and the gradients ds of scores, both
  // zero beyond n; s and dp have room for a multiple of 2 W.
  void probabilities(float* s, float* dp, int64_t row, T* p, T* ds) const {
    const int64_t end = round_up(n, 2 * W);
    std::fill(s + n, s + end, -1e30f);
    std::fill(dp + n, dp + end, 0.0f);
    const Vec by(scale * LOG2_E), minus(-logsumexp[row * heads]), factor(scale);
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
struct AttentionBackwardArguments {
  int64_t threads;         // that may run
  float* dx;               // (N, D)
  float* d_weights;        // (4 F, P), of W_qkv and of W_out's transpose
  float* d_b_qkv;          // (pitch(3 F),)
  float* d_vectors;        // (3, D), of b_out, gain and shift
  const float* dy;         // (N, D)
  const float* x;          // (N, D); the arguments that follow, up to `windows`, are what forward kept
  const T* qkv;            // (N, pitch(3 F))
  const T* attended;       // (N, F)
  const float* logsumexp;  // (N, H)
  const T* product;        // (N, P)
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  const T* w_out;          // packed (D, F)
  const T* w_qkv;          // packed (3 F, D)
  const float* b_out;      // (D,)
  const float* gain;       // (D,), LayerNorm's
  int64_t heads;           // H
  double eps;              // LayerNorm's
  const int64_t* seed;     // (1,), dropout's; null: nothing was dropped
  int64_t salt;
  double p;
};

template <class T>
struct AttentionBackward {
  static constexpr int64_t CHUNK_ROWS = 1024;

  const AttentionBackwardArguments<T>& a;
  int64_t size;  // d
  float scale;   // of scores
  Ending end;

  explicit AttentionBackward(const AttentionBackwardArguments<T>& a)
      : a(a),
        size(round_up(a.width / a.heads, STEP<T>)),
        scale(float(1 / std::sqrt(double(a.width / a.heads)))),
        end{a.b_out, a.gain, nullptr, a.eps, a.width, Dropout(a.seed, a.salt, a.p)} {}

  int64_t features() const { return a.heads * size; }
  int64_t stride() const { return pitch(3 * features()); }

  // Windows that lie end to end, and what is made of them: gradients of what was attended (n, F) and of q, k and v
  // (n, pitch(3 F)); x and d_o, of W_out's product, packed as (n, D).
  struct Chunk {
    int64_t first, rows, first_window, windows;
    T *d_attended, *d_qkv, *x, *d_o;
  };

  // Up to what was attended. dx gets the residual's share.
  void outside(Tile tile, const Chunk& chunk, double* d_vectors) const {
    Scratch scratch;
    const int64_t m = tile.count, width = a.width, p = pitch(width), f = features(), at = tile.first - chunk.first;
    T* d_o = scratch.take<T>(m * p);
    float* c = scratch.take<float>(m * pitch(f));
    for (int64_t r = 0, row = tile.first; r < m; ++r, ++row)
      end.backward(a.dy + row * width, a.product + row * p, a.x + row * width, row, a.dx + row * width, d_o + r * p,
                   {d_vectors, d_vectors + p, d_vectors + 2 * p});
    gemm(Left<T>{d_o, p}, m, width, a.w_out, f, c, pitch(f));
    AttentionHead<T>::store(c, pitch(f), m, f, chunk.d_attended + at * f, f);
    pack_rows(a.x + tile.first * width, width, m, width, chunk.x, at, chunk.rows);
    pack_rows(d_o, p, m, width, chunk.d_o, at, chunk.rows);
  }

  // One head of the window that starts at row `start`.
  void inside(int64_t start, int64_t n, int64_t head, const Chunk& chunk) const {
    const int64_t ld = stride(), f = features(), at = head * size;
    const T* q = a.qkv + start * ld + at;
    T* dq = chunk.d_qkv + (start - chunk.first) * ld + at;
    AttentionHead<T>{n,       size,   ld,         f,
                     q,       q + f,  q + 2 * f,  chunk.d_attended + (start - chunk.first) * f + at,
                     dq,      dq + f, dq + 2 * f, a.logsumexp + start * a.heads + head,
                     a.heads, scale}
        .run();
  }

  // From the gradients of q, k and v to dx.
  void into(Tile tile, const Chunk& chunk, double* d_b_qkv) const {
    Scratch scratch;
    const int64_t m = tile.count, width = a.width, p = pitch(width), ld = stride(), f = features();
    T* d = chunk.d_qkv + (tile.first - chunk.first) * ld;
    for (int64_t r = 0; r < m; ++r) std::fill(d + r * ld + 3 * f, d + (r + 1) * ld, T(0.0f));
    add_columns(d, m, ld, d_b_qkv);
    float* c = scratch.take<float>(m * p);
    gemm(Left<T>{d, ld}, m, 3 * f, a.w_qkv, width, c, p);
    for (int64_t r = 0; r < m; ++r) {
      float* to = a.dx + (tile.first + r) * width;
      columns(width, [&](int64_t j, int64_t n) { store2(to + j, load2(to + j, n) + load2(c + r * p + j), n); });
    }
  }

  // Adds a chunk's share to d_weights' rows from `first` on, `many`. They may be the last of W_qkv and the first of
  // W_out.
  void block(int64_t first, int64_t many, const Chunk& chunk) const {
    const int64_t f = features(), p = pitch(a.width), last = std::min(first + many, 4 * f);
    const int64_t border = std::clamp(3 * f, first, last);
    add_products(chunk.d_qkv + first, stride(), chunk.rows, border - first, chunk.x, a.width, a.d_weights + first * p);
    add_products(a.attended + chunk.first * f + border - 3 * f, f, chunk.rows, last - border, chunk.d_o, a.width,
                 a.d_weights + border * p);
  }

  // A whole chunk. d_vectors and d_b_qkv take its share of the sums.
  void run(const Windows& all, Chunk& chunk, std::vector<double>& d_vectors, std::vector<double>& d_b_qkv) const {
    const int64_t threads = a.threads, p = pitch(a.width);
    const auto work = cut({{chunk.first, chunk.rows}}, threads, ATTENTION_TILE);
    const int64_t many = work.size();
    Scratch shared;
    Sums vectors(many, 3 * p, shared), biases(many, stride(), shared);
    chunk.d_attended = shared.take<T>(chunk.rows * features());
    chunk.d_qkv = shared.take<T>(chunk.rows * stride());
    chunk.x = shared.take<T>(round_up(chunk.rows, STEP<T>) * p);
    chunk.d_o = shared.take<T>(round_up(chunk.rows, STEP<T>) * p);
    parallel_for(threads, many, [&](int64_t i) { outside(work[i], chunk, vectors.of(i)); });
    parallel_for(threads, chunk.windows * a.heads, [&](int64_t i) {
      const int64_t window = chunk.first_window + i / a.heads;
      if (all.lengths[window] > 0) inside(all.starts[window], all.lengths[window], i % a.heads, chunk);
    });
    const int64_t each = block_columns(4 * features(), threads), blocks = (4 * features() + each - 1) / each;
    parallel_for(threads, blocks + many, [&](int64_t i) {
      i < blocks ? block(i * each, each, chunk) : into(work[i - blocks], chunk, biases.of(i - blocks));
    });
    vectors.add_to(d_vectors);
    biases.add_to(d_b_qkv);
  }
};

template <class T>
void attention_backward(const AttentionBackwardArguments<T>& a) {
  using Op = AttentionBackward<T>;
  const Windows all(a);
  const Op op(a);
  const int64_t p = pitch(a.width);
  std::fill(a.d_weights, a.d_weights + 4 * op.features() * p, 0.0f);
  std::vector<double> d_vectors(3 * p, 0.0), d_b_qkv(op.stride(), 0.0);
  for (int64_t next = 0; next < a.batch;) {
    typename Op::Chunk chunk{all.starts[next], 0, next, 0};
    do {
      chunk.rows += all.lengths[next++];
    } while (next < a.batch && all.starts[next] == chunk.first + chunk.rows &&
             chunk.rows + all.lengths[next] <= std::max(Op::CHUNK_ROWS, a.threads * ATTENTION_TILE));
    chunk.windows = next - chunk.first_window;
    if (chunk.rows > 0) op.run(all, chunk, d_vectors, d_b_qkv);
  }
  clear_others(all, a.dx, a.width);
  std::copy(d_b_qkv.begin(), d_b_qkv.end(), a.d_b_qkv);
  for (int64_t part = 0; part < 3; ++part)
    std::copy_n(d_vectors.begin() + part * p, a.width, a.d_vectors + part * a.width);
}

}  // namespace astroco
