// Dropout written out, for tests: no op needs it.
#pragma once

#include "parallel.h"
#include "rows.h"

namespace astroco {

// (rows, width): what rows are multiplied by.
inline void dropout_mask(
    int64_t threads, float* out, const int64_t* seed, int64_t salt, double p, int64_t rows, int64_t width) {
  const Dropout dropout(seed, salt, p);
  parallel_for(threads, rows, [&](int64_t row) { dropout.scales(row, width, out + row * width); });
}

}  // namespace astroco
