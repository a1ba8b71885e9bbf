// BatchNorm's statistics of a batch from those of its parts.
#pragma once

#include <cmath>
#include <vector>

#include "parallel.h"

namespace astroco {

// Parts are windows or ranks. The statistics of one are its mean, what rounding took from that, and the sum of squared
// deviations.
struct BatchNormMergeArguments {
  int64_t threads;       // not used: there is too little to do
  float* total;          // (1,), the number of rows
  float* statistics;     // (4, P), those of all rows, and 1 / standard deviation
  const float* count;    // (parts,), rows of each
  const float* partial;  // (parts, 3, P); those of a part without rows may hold anything
  int64_t parts;
  int64_t columns;      // P
  float* running_mean;  // (D,), updated in place, unless there are no rows; null: no update
  float* running_var;   // (D,), likewise, unbiased
  int64_t* batches;     // (), counted up; null: no update
  int64_t channels;     // D; 0 where there is no update
  double momentum;
  double eps;
};

// Joins the parts by Chan's formula in double, in their order.
inline void batch_norm_merge(const BatchNormMergeArguments& a) {
  const int64_t p = a.columns;
  double n = 0.0;
  std::vector<double> mean(p, 0.0), squares(p, 0.0);
  for (int64_t i = 0; i < a.parts; ++i) {
    if (a.count[i] == 0.0f) continue;
    const double many = a.count[i], share = many / (n + many), cross = n * share;
    const float* part = a.partial + i * 3 * p;
    for (int64_t j = 0; j < p; ++j) {
      const double delta = double(part[j]) + double(part[p + j]) - mean[j];
      mean[j] += delta * share;
      squares[j] += part[2 * p + j] + delta * delta * cross;
    }
    n += many;
  }
  *a.total = float(n);
  float* statistics = a.statistics;
  for (int64_t j = 0; j < p; ++j) {
    const double variance = squares[j] / std::max(n, 1.0);
    statistics[j] = float(mean[j]);
    statistics[p + j] = float(mean[j] - double(statistics[j]));
    statistics[2 * p + j] = float(squares[j]);
    statistics[3 * p + j] = float(1.0 / std::sqrt(variance + a.eps));
  }
  if (!a.batches) return;
  *a.batches += 1;
  for (int64_t j = 0; j < a.channels && n > 0; ++j) {
    float &running_mean = a.running_mean[j], &running_var = a.running_var[j];
    running_mean = float(running_mean + a.momentum * (mean[j] - running_mean));
    running_var = float(running_var + a.momentum * (squares[j] / std::max(n - 1.0, 1.0) - running_var));
  }
}

}  // namespace astroco
