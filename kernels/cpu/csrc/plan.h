// Ops called one after another, without a return to Python between them (kernels/cpu/plan.py).
#pragma once

#include <cstdint>

namespace astroco {

// One op: its function, and the struct that holds its arguments.
struct PlannedCall {
  void (*function)(const void*);
  const void* arguments;
};

// Runs the calls in their order, and returns 1; or returns 0 and runs none, because one of the sampled words has
// changed since the weights were prepared.
inline int64_t run_plan(const PlannedCall* calls, int64_t count, const uint32_t* const* places, const uint32_t* values,
                        int64_t samples) {
  uint32_t changed = 0;
  for (int64_t i = 0; i < samples; ++i) changed |= *places[i] ^ values[i];
  if (changed) return 0;
  for (int64_t i = 0; i < count; ++i) calls[i].function(calls[i].arguments);
  return 1;
}

}  // namespace astroco
