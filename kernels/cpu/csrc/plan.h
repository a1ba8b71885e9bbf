// Ops called one after another, without a return to Python between them (kernels/cpu/plan.py), and how weights are
// compared with those that were prepared (kernels/checksum.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

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

// A number that changes with the content of some bytes and with their order; a change that was not made for it goes
// unseen by one chance in 2^32. Four places are read at a time, which memory serves sooner than one.
inline uint64_t checksum(const char* memory, int64_t size) {
  using Words = uint32_t __attribute__((vector_size(64)));  // computed with in as many vectors as the CPU needs
  constexpr int64_t LINE = sizeof(Words);
  Words sums[4] = {};
  auto add = [](Words& sum, const char* from, int64_t n) {
    Words words = {};
    std::memcpy(&words, from, n);
    sum = (sum ^ words) * 0x9e3779b1u;
    sum = sum << 13 | sum >> 19;
  };
  const int64_t each = size / (4 * LINE) * LINE;
  for (int64_t i = 0; i < each; i += LINE) {
    add(sums[0], memory + i, LINE);
    add(sums[1], memory + each + i, LINE);
    add(sums[2], memory + 2 * each + i, LINE);
    add(sums[3], memory + 3 * each + i, LINE);
  }
  for (int64_t i = 4 * each; i < size; i += LINE) add(sums[0], memory + i, std::min(LINE, size - i));
  uint64_t all = size;
  for (auto& sum : sums)
    for (size_t j = 0; j < LINE / sizeof(uint32_t); ++j) all = (all ^ sum[j]) * 0x9e3779b97f4a7c15u;
  return all;
}

}  // namespace astroco
