// Threads and their scratch memory.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "amx.h"

namespace astroco {

// Memory of one thread, which it keeps from call to call. A Scratch gives back what was taken from it when it ends.
class Scratch {
 public:
  Scratch() : mark_(arena().used) {}
  ~Scratch() {
    arena().used = mark_;
    if (mark_ == 0) arena().settle();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // n elements, aligned to cache lines, not initialised.
  template <class T>
  T* take(int64_t n) {
    return static_cast<T*>(arena().take((n * sizeof(T) + LINE - 1) / LINE * LINE));
  }

 private:
  static constexpr size_t LINE = 64, BLOCK = size_t(1) << 20;

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Block {
    std::unique_ptr<char, Free> memory;
    size_t size;
  };
  // A position is a block and an offset in it, as one number: blocks lie end to end.
  struct Arena {
    std::vector<Block> blocks;
    size_t used = 0, settled = 0;

    // Replaces all blocks by one of their total size, the next time: else every new size would leave a block behind.
    void settle() {
      if (blocks.size() < 2) return;
      settled = 0;
      for (auto& block : blocks) settled += block.size;
      blocks.clear();
    }

    void* take(size_t bytes) {
      size_t start = 0;
      for (auto& block : blocks) {
        size_t end = start + block.size;
        if (used < end && std::max(used, start) + bytes <= end) {
          char* found = block.memory.get() + (std::max(used, start) - start);
          used = std::max(used, start) + bytes;
          return found;
        }
        start = end;
      }
      const size_t size = std::max({bytes, BLOCK, settled});
      blocks.push_back({std::unique_ptr<char, Free>(static_cast<char*>(std::aligned_alloc(LINE, size))), size});
      used = start + bytes;
      return blocks.back().memory.get();
    }
  };
  static Arena& arena() {
    static thread_local Arena instance;
    return instance;
  }

  size_t mark_;
};

// f(i) for i in 0 .. n - 1. Each free thread takes the next i, so what f computes must not depend on the thread.
template <class F>
void parallel_for(int64_t threads, int64_t n, F&& f) {
  if (threads == 1 || n == 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
    release_tiles();
    return;
  }
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic) nowait
    for (int64_t i = 0; i < n; ++i) f(i);
    release_tiles();
  }
}

// Threads that work on one window together. A team of one never waits.
class Team {
 public:
  Team(int64_t rank, int64_t size, std::atomic<int64_t>& arrived) : rank(rank), size(size), arrived_(&arrived) {}

  const int64_t rank, size;

  // Returns when every member of the team has called it.
  void wait() {
    if (size == 1) return;
    target_ += size;
    arrived_->fetch_add(1, std::memory_order_acq_rel);
    for (int64_t spins = 0; arrived_->load(std::memory_order_acquire) < target_; ++spins)
      if (spins > 1000) std::this_thread::yield();
  }

 private:
  std::atomic<int64_t>* arrived_;
  int64_t target_ = 0;
};

}  // namespace astroco
