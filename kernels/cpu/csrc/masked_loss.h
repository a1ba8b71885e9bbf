// Squared error at probed points, sums and counts by role: 1, 2, 3; at all others nothing is read but the role.
#pragma once

#include "parallel.h"

namespace astroco {

inline bool probed(int64_t role) { return role >= 1 && role <= 3; }

// squared, count (B, 3) from prediction, target, role (B, T).
inline void squared_error(int64_t threads, float* squared, float* count, const float* prediction, const float* target,
                          const int64_t* role, int64_t batch, int64_t length) {
  parallel_for(threads, batch, [&](int64_t b) {
    double sums[4] = {};
    int64_t counts[4] = {};
    for (int64_t i = b * length; i < (b + 1) * length; ++i) {
      if (!probed(role[i])) continue;
      const double error = prediction[i] - target[i];
      sums[role[i]] += error * error;
      ++counts[role[i]];
    }
    std::copy(sums + 1, sums + 4, squared + 3 * b);
    std::copy(counts + 1, counts + 4, count + 3 * b);
  });
}

// The gradient of prediction; upstream (B, 3) is that of `squared`.
inline void squared_error_backward(int64_t threads, float* gradient, const float* upstream, const float* prediction,
                                   const float* target, const int64_t* role, int64_t batch, int64_t length) {
  parallel_for(threads, batch, [&](int64_t b) {
    for (int64_t i = b * length; i < (b + 1) * length; ++i)
      gradient[i] = probed(role[i]) ? 2.0f * (prediction[i] - target[i]) * upstream[3 * b + role[i] - 1] : 0.0f;
  });
}

}  // namespace astroco
