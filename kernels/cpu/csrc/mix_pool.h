// The layer mix, sum_l w_l x(l) with w = softmax(logits), and its mean over each window's real points.
//
// Memory's pace is all that counts here: a state is read once, and nothing is copied. A thread takes whole windows, so
// that the mean needs no second pass.
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

// mixed (N, D) = or, where `add`, += sum_j w_{index + j} states[j], `count` states (N, D). pooled (B, D) takes its
// means; null: not wanted.
inline void mix(int64_t threads, float* mixed, float* pooled, const float* const* states, int64_t count, int64_t add,
                const float* logits, int64_t index, int64_t layers, const int64_t* windows, int64_t batch, int64_t rows,
                int64_t width) {
  Windows all(windows, batch, rows);
  const auto weights = softmax(logits, layers);
  parallel_for(threads, batch, [&](int64_t i) {
    Scratch scratch;
    float* total = scratch.take<float>(round_up(width, 2 * W));
    std::fill(total, total + round_up(width, 2 * W), 0.0f);
    for (int64_t row = all.starts[i]; row < all.starts[i] + all.lengths[i]; ++row)
      columns(width, [&](int64_t j, int64_t n) {
        const int64_t at = row * width + j;
        Two value = add ? load2(mixed + at, n) : Two{Vec(0.0f), Vec(0.0f)};
        for (int64_t l = 0; l < count; ++l) value = value + load2(states[l] + at, n) * Vec(weights[index + l]);
        store2(mixed + at, value, n);
        if (pooled) store2(total + j, load2(total + j) + value);
      });
    if (!pooled) return;
    const Vec points(float(std::max<int64_t>(all.lengths[i], 1)));
    columns(width, [&](int64_t j, int64_t n) {
      store2(pooled + i * width + j, map(load2(total + j), [&](Vec v) { return v / points; }), n);
    });
  });
  if (!add) clear_others(all, mixed, width);
}

// In double throughout: in the gradient of the logits, sums over all rows nearly cancel.
inline double dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t LANES = 32;
  double sums[LANES] = {};
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES)
    for (int64_t i = 0; i < LANES; ++i) sums[i] += double(a[j + i]) * b[j + i];
  for (; j < n; ++j) sums[0] += double(a[j]) * b[j];
  return std::accumulate(sums, sums + LANES, 0.0);
}

// Back through the whole mix, for some of its states: their gradients d_states (N, D) each, and dots (B, count), for
// each window and state the sum of the product of the state with the gradient of the mix. d_mixed (N, D) or d_pooled
// (B, D) may be null: zero.
inline void mix_backward(int64_t threads, float* const* d_states, double* dots, const float* d_mixed,
                         const float* d_pooled, const float* const* states, int64_t count, const float* logits,
                         int64_t index, int64_t layers, const int64_t* windows, int64_t batch, int64_t rows,
                         int64_t width) {
  Windows all(windows, batch, rows);
  const auto weights = softmax(logits, layers);
  parallel_for(threads, batch, [&](int64_t i) {
    Scratch scratch;
    float* up = scratch.take<float>(round_up(width, 2 * W));
    const Vec points(float(std::max<int64_t>(all.lengths[i], 1)));
    std::fill(dots + i * count, dots + (i + 1) * count, 0.0);
    for (int64_t row = all.starts[i]; row < all.starts[i] + all.lengths[i]; ++row) {
      columns(width, [&](int64_t j, int64_t n) {
        Two value{Vec(0.0f), Vec(0.0f)};
        if (d_pooled) value = map(load2(d_pooled + i * width + j, n), [&](Vec v) { return v / points; });
        if (d_mixed) value = value + load2(d_mixed + row * width + j, n);
        store2(up + j, value);
      });
      for (int64_t l = 0; l < count; ++l) {
        const float* state = states[l] + row * width;
        columns(width, [&](int64_t j, int64_t n) {
          store2(d_states[l] + row * width + j, load2(up + j) * Vec(weights[index + l]), n);
        });
        dots[i * count + l] += dot(up, state, width);
      }
    }
  });
  for (int64_t l = 0; l < count; ++l) clear_others(all, d_states[l], width);
}

}  // namespace astroco
