// The layer mix, sum_l w_l x(l) with w = softmax(logits), and its mean over each window's real points.
//
// The time is that of reading memory, so each state is read once and nothing is copied. A thread takes whole windows,
// so that the mean needs no second pass.
#pragma once

#include <numeric>

#include "rows.h"

namespace astroco {

inline std::vector<float> softmax(const float* logits, int64_t layers) {
  std::vector<double> powers(layers);
  const double most = *std::max_element(logits, logits + layers);
  double total = 0;
  for (int64_t l = 0; l < layers; ++l) total += powers[l] = std::exp(logits[l] - most);
  std::vector<float> weights(layers);
  for (int64_t l = 0; l < layers; ++l) weights[l] = float(powers[l] / total);
  return weights;
}

// Of `mix` and of `mix_add`.
struct MixArguments {
  int64_t threads;             // that may run
  float* mixed;                // (N, D)
  float* pooled;               // (B, D), where `pool`: the means of mixed
  const float* const* states;  // `count` of (N, D)
  int64_t count;
  const float* logits;     // (L+1,)
  int64_t layers;          // L+1
  int64_t index;           // the number of the first of `states`
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
  int64_t pool;            // whether these are the last states
};

template <bool ADD>
void mix_states(const MixArguments& a) {
  const Windows all(a);
  const auto weights = softmax(a.logits, a.layers);
  const int64_t width = a.width;
  parallel_for(a.threads, a.batch, [&](int64_t i) {
    Scratch scratch;
    float* total = scratch.take<float>(round_up(width, 2 * W));
    std::fill(total, total + round_up(width, 2 * W), 0.0f);
    for (int64_t row = all.starts[i]; row < all.starts[i] + all.lengths[i]; ++row)
      columns(width, [&](int64_t j, int64_t n) {
        const int64_t at = row * width + j;
        Two value = ADD ? load2(a.mixed + at, n) : Two{Vec(0.0f), Vec(0.0f)};
        for (int64_t l = 0; l < a.count; ++l) value = value + load2(a.states[l] + at, n) * Vec(weights[a.index + l]);
        store2(a.mixed + at, value, n);
        if (a.pool) store2(total + j, load2(total + j) + value);
      });
    if (!a.pool) return;
    const Vec points(float(std::max<int64_t>(all.lengths[i], 1)));
    columns(width, [&](int64_t j, int64_t n) {
      store2(a.pooled + i * width + j, map(load2(total + j), [&](Vec v) { return v / points; }), n);
    });
  });
  if (!ADD) clear_others(all, a.mixed, width);
}

// mixed = sum_j w_{index + j} states[j].
inline void mix(const MixArguments& a) { mix_states<false>(a); }

// mixed += sum_j w_{index + j} states[j].
inline void mix_add(const MixArguments& a) { mix_states<true>(a); }

// In double, because in the gradient of the logits the sums over all rows nearly cancel.
inline double dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t LANES = 32;
  double sums[LANES] = {};
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES)
    for (int64_t i = 0; i < LANES; ++i) sums[i] += double(a[j + i]) * b[j + i];
  for (; j < n; ++j) sums[0] += double(a[j]) * b[j];
  return std::accumulate(sums, sums + LANES, 0.0);
}

struct MixBackwardArguments {
  int64_t threads;             // that may run
  float* const* d_states;      // `count` of (N, D)
  double* dots;                // (B, count), for each window and state the sum of state times gradient of the mix
  const float* const* states;  // `count` of (N, D)
  int64_t count;
  const float* d_mixed;    // (N, D); null: zero
  const float* d_pooled;   // (B, D); null: zero
  const float* logits;     // (L+1,)
  int64_t layers;          // L+1
  int64_t index;           // the number of the first of `states`
  const int64_t* windows;  // (2, B): each window's first row and length
  int64_t batch;           // B
  int64_t rows;            // N
  int64_t width;           // D
};

// Back through the whole mix, for some of its states.
inline void mix_backward(const MixBackwardArguments& a) {
  const Windows all(a);
  const auto weights = softmax(a.logits, a.layers);
  const int64_t width = a.width, count = a.count;
  parallel_for(a.threads, a.batch, [&](int64_t i) {
    Scratch scratch;
    float* up = scratch.take<float>(round_up(width, 2 * W));
    const Vec points(float(std::max<int64_t>(all.lengths[i], 1)));
    std::fill(a.dots + i * count, a.dots + (i + 1) * count, 0.0);
    for (int64_t row = all.starts[i]; row < all.starts[i] + all.lengths[i]; ++row) {
      columns(width, [&](int64_t j, int64_t n) {
        Two value{Vec(0.0f), Vec(0.0f)};
        if (a.d_pooled) value = map(load2(a.d_pooled + i * width + j, n), [&](Vec v) { return v / points; });
        if (a.d_mixed) value = value + load2(a.d_mixed + row * width + j, n);
        store2(up + j, value);
      });
      for (int64_t l = 0; l < count; ++l) {
        const float* state = a.states[l] + row * width;
        columns(width, [&](int64_t j, int64_t n) {
          store2(a.d_states[l] + row * width + j, load2(up + j) * Vec(weights[a.index + l]), n);
        });
        a.dots[i * count + l] += dot(up, state, width);
      }
    }
  });
  for (int64_t l = 0; l < count; ++l) clear_others(all, a.d_states[l], width);
}

}  // namespace astroco
