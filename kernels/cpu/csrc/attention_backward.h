// Back through sublayer a: its ending and W_out tile by tile, then the heads of each window, then W_qkv tile by tile,
// and the gradients of the matrices. This is done for some windows (a chunk) at a time, so that what passes from one
// step to the next stays in the cores' own caches. Scores and their exponentials are computed again from q, k and the
// logarithms of softmax's sums.
#pragma once

#include "attention.h"
#include "weight_gradient.h"

namespace astroco {

constexpr int64_t GROUP = 2 * W;  // queries whose scores lie in the fastest cache, as columns
constexpr int64_t QUERIES = 256;  // whose probabilities lie in a core's own cache; a multiple of GROUP

// Where two rows of numbers go: to rows, and side by side to a right factor of a product.
ALWAYS_INLINE void store_rows(Vec first, Vec, float* rows, int64_t, float* packed) {
  first.store(rows);
  if (packed) first.store(packed);
}
#ifdef __AVX512BF16__
ALWAYS_INLINE void store_rows(Vec first, Vec second, bf16* rows, int64_t ld, bf16* packed) {
  const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), _mm512_castsi512_si256(both));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + ld), _mm512_extracti64x4_epi64(both, 1));
  if (packed) {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(packed, _mm512_permutexvar_epi16(pairs, both));
  }
}
#endif

// One head of one window. q, k, v and their gradients have rows of `ld`, the gradient of what was attended
// of `features`. Scores are made as (keys, queries): so probabilities and gradients of scores lie in memory as the left
// factors of the products for dv and dk, and none of the matrices as large as the scores is transposed.
template <class T>
struct AttentionHead {
  int64_t n, size, ld, features;
  const T *q, *k, *v, *d_attended;
  T *dq, *dk, *dv;
  const float* logsumexp;  // of the head, rows of `heads`
  int64_t heads;
  float scale;

  void run() const {
    Scratch scratch;
    const int64_t most = std::min(n, QUERIES), width = round_up(size, 2 * W), row = row_of(most), depth = even(n);
    T *p = scratch.take<T>(depth * row), *ds = scratch.take<T>(depth * row);  // probabilities, gradients of scores
    T* packed = scratch.take<T>(head_size<T>(most, size));
    float *k_sums = scratch.take<float>(n * width), *v_sums = scratch.take<float>(n * width);
    const Factors of{rows_of(k, scratch), rows_of(v, scratch), transposed(k, ld, n, size, scratch)};
    for (int64_t first = 0; first < n; first += QUERIES) {
      const int64_t m = std::min(QUERIES, n - first);
      for (int64_t j = 0; j < m; j += GROUP) group(first + j, std::min(GROUP, m - j), of, p + j, ds + j, row);
      pack_upright(packed, d_attended + first * features, features, m, size, m);
      head_product(Left<T>{p, row}, n, m, packed, size, v_sums, width, first > 0);
      pack_upright(packed, q + first * ld, ld, m, size, m);
      head_product(Left<T>{ds, row}, n, m, packed, size, k_sums, width, first > 0);
    }
    store(v_sums, width, n, size, dv, ld);
    store(k_sums, width, n, size, dk, ld, scale);
  }

  static void store(const float* from, int64_t from_ld, int64_t rows, int64_t size, T* to, int64_t to_ld,
                    float by = 1.0f) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < size; j += 2 * W)
        store_some(to + r * to_ld + j, load2(from + r * from_ld + j) * Vec(by), size - j);
  }

 private:
  // Left factors that all queries use.
  struct Factors {
    Left<T> keys, values, keys_across;
  };

  // Keys or values in rows of their own: those of all heads are too far apart for the fastest cache to hold them.
  Left<T> rows_of(const T* x, Scratch& scratch) const {
    const int64_t row = row_of(size);
    T* rows = scratch.take<T>(n * row);
    for (int64_t r = 0; r < n; ++r) std::copy_n(x + r * ld, size, rows + r * row);
    return {rows, row};
  }

  static int64_t even(int64_t rows) { return round_up(rows, STEP<T>); }
  static int64_t row_of(int64_t columns) {
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, bf16>) return spaced(columns);
#endif
    return round_up(columns, GROUP);
  }

  // Some queries' columns of p and ds, and their gradients.
  void group(int64_t first, int64_t m, const Factors& of, T* p, T* ds, int64_t row) const {
    Scratch scratch;
    const int64_t columns = vectors(m) * W, width = round_up(size, 2 * W);
    T *across = scratch.take<T>(size * columns), *packed = scratch.take<T>(even(n) * columns);
    float *s = scratch.take<float>(n * columns), *dp = scratch.take<float>(n * columns);
    pack_transposed(across, q + first * ld, ld, m, size);
    head_product(of.keys, n, size, across, m, s, columns);
    pack_transposed(across, d_attended + first * features, features, m, size);
    head_product(of.values, n, size, across, m, dp, columns);
    for (int64_t j = 0; j < columns; j += W) {
      alignas(64) float sums[W] = {};
      for (int64_t i = 0; i < std::min(W, m - j); ++i) sums[i] = logsumexp[(first + j + i) * heads];
      probabilities(s + j, dp + j, columns, Vec::loadu(sums), p + j, ds + j, row, packed + j * STEP<T>);
    }
    float *q_sums = scratch.take<float>(size * columns), *upright = scratch.take<float>(columns * width);
    head_product(of.keys_across, size, n, packed, m, q_sums, columns);
    transpose(q_sums, columns, size, columns, upright, width);
    store(upright, width, m, size, dq + first * ld, ld, scale);
  }

  // For each of W queries a column of scores s and one of gradients dp of probabilities: probabilities p and the
  // gradients ds of scores, these also as a right factor, `packed`.
  void probabilities(float* s, const float* dp, int64_t columns, Vec sums, T* p, T* ds, int64_t row, T* packed) const {
    const Vec by(scale * LOG2_E), minus = sums.neg();
    Vec total(0.0f), along(0.0f);
    for (int64_t r0 = 0; r0 < n; r0 += 16) {  // in parts, as one long sum would lose digits
      Vec some(0.0f), some_along(0.0f);
      for (int64_t r = r0; r < std::min(n, r0 + 16); ++r) {
        Vec e = exp2<T>(at::vec::fmadd(Vec::loadu(s + r * columns), by, minus));
        e.store(s + r * columns);
        some = some + e;
        some_along = at::vec::fmadd(e, Vec::loadu(dp + r * columns), some_along);
      }
      total = total + some;
      along = along + some_along;
    }
    // Their sum is one but for the logarithm's rounding, which all of a query would share and sums over keys add up.
    const Vec one = Vec(1.0f) / total, mean = along * one;
    for (int64_t r = 0; r < n; r += STEP<T>, packed += columns * STEP<T>) {
      auto pair = [&](int64_t r) -> Two {
        if (r >= n) return {Vec(0.0f), Vec(0.0f)};
        Vec e = Vec::loadu(s + r * columns) * one;
        return {e, e * (Vec::loadu(dp + r * columns) - mean)};
      };
      const Two first = pair(r), second = STEP<T> == 1 ? first : pair(r + 1);
      store_rows(first.a, second.a, p + r * row, row, static_cast<T*>(nullptr));
      store_rows(first.b, second.b, ds + r * row, row, packed);
    }
  }
};

// Column sums of rows (m, n), n a multiple of 2 W, added to `sums`.
template <class T>
inline void add_columns(const T* rows, int64_t m, int64_t n, double* sums) {
  constexpr int64_t SOME = TileSums::IN_FLOAT;
  for (int64_t r0 = 0; r0 < m; r0 += SOME)
    for (int64_t j = 0; j < n; j += 2 * W) {
      Two some{Vec(0.0f), Vec(0.0f)};
      for (int64_t r = r0; r < std::min(m, r0 + SOME); ++r) some = some + load2(rows + r * n + j);
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
  static constexpr int64_t CHUNK_ROWS = 400;  // a thread: what is made of them fits a core's own cache

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
    TileSums sums(d_vectors, 3 * p, scratch);
    for (int64_t r = 0, row = tile.first; r < m; ++r, ++row)
      end.backward(a.dy + row * width, a.product + row * p, a.x + row * width, row, a.dx + row * width, d_o + r * p,
                   {sums, p});
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
             chunk.rows + all.lengths[next] <= a.threads * Op::CHUNK_ROWS);
    chunk.windows = next - chunk.first_window;
    if (chunk.rows > 0) op.run(all, chunk, d_vectors, d_b_qkv);
  }
  clear_others(all, a.dx, a.width);
  std::copy(d_b_qkv.begin(), d_b_qkv.end(), a.d_b_qkv);
  for (int64_t part = 0; part < 3; ++part)
    std::copy_n(d_vectors.begin() + part * p, a.width, a.d_vectors + part * a.width);
}

}  // namespace astroco
