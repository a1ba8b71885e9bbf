// BatchNorm's statistics of a batch from those of its parts.
#pragma once

#include <cmath>
#include <vector>

#include "parallel.h"

namespace astroco {

// Joins parts, windows or ranks, by Chan's formula in double, in their order. count (parts,), partial (parts, 3, p):
// mean, what rounding took from it, squared deviations; of parts with count 0 it may hold anything. total (1,);
// statistics (4, p): those of all, and 1 / standard deviation. The running ones (width,) are updated unless null; they
// stay where there is nothing.
inline void batch_norm_merge(int64_t, float* total, float* statistics, float* running_mean, float* running_var,
                             int64_t* batches, const float* count, const float* partial, int64_t parts, int64_t width,
                             int64_t p, double momentum, double eps) {
  double n = 0.0;
  std::vector<double> mean(p, 0.0), squares(p, 0.0);
  for (int64_t i = 0; i < parts; ++i) {
    if (count[i] == 0.0f) continue;
    const double many = count[i], share = many / (n + many), cross = n * share;
    const float* part = partial + i * 3 * p;
    for (int64_t j = 0; j < p; ++j) {
      const double delta = double(part[j]) + double(part[p + j]) - mean[j];
      mean[j] += delta * share;
      squares[j] += part[2 * p + j] + delta * delta * cross;
    }
    n += many;
  }
  *total = float(n);
  for (int64_t j = 0; j < p; ++j) {
    const double variance = squares[j] / std::max(n, 1.0);
    statistics[j] = float(mean[j]);
    statistics[p + j] = float(mean[j] - double(statistics[j]));
    statistics[2 * p + j] = float(squares[j]);
    statistics[3 * p + j] = float(1.0 / std::sqrt(variance + eps));
  }
  if (!batches) return;
  *batches += 1;
  for (int64_t j = 0; j < width && n > 0; ++j) {
    running_mean[j] = float(running_mean[j] + momentum * (mean[j] - running_mean[j]));
    running_var[j] = float(running_var[j] + momentum * (squares[j] / std::max(n - 1.0, 1.0) - running_var[j]));
  }
}

}  // namespace astroco
