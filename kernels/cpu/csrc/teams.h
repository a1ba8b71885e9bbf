// How windows are dealt to threads: some windows to each, or where windows are few, a team of threads to each window.
#pragma once

#include "rows.h"

namespace astroco {

// The windows in shares: a share is consecutive windows that one team does one after another, so that sums over them
// need one place. The longest share comes first.
class Shares {
 public:
  Shares(int64_t threads, const Windows& windows) : threads_(threads) {
    int64_t total = 0, filled = 0;
    for (int64_t i = 0; i < windows.count; ++i) {
      total += windows.lengths[i];
      filled += windows.lengths[i] > 0;
    }
    teams_ = threads > 1 && filled < 2 * threads;
    const int64_t enough = teams_ ? 1 : (total + 8 * threads - 1) / (8 * threads);
    for (int64_t i = 0; i < windows.count; ++i) {
      if (windows.lengths[i] == 0) continue;
      if (shares_.empty() || shares_.back().rows >= enough) shares_.push_back({{}, 0});
      shares_.back().windows.push_back(i);
      shares_.back().rows += windows.lengths[i];
    }
    std::stable_sort(shares_.begin(), shares_.end(), [](auto& a, auto& b) { return a.rows > b.rows; });
  }

  int64_t count() const { return shares_.size(); }

  // The most threads that a team has.
  int64_t most() const { return teams_ ? threads_ : 1; }

  // f(team, window, share, memory) on each thread of the window's team, where memory is `bytes` that the team shares.
  // The windows of a share come one after another.
  template <class F>
  void run(int64_t bytes, F&& f) const {
    if (count() == 0) return;
    if (!teams_) {
      parallel_for(threads_, count(), [&](int64_t i) {
        std::atomic<int64_t> arrived{0};
        Team alone(0, 1, arrived);
        Scratch scratch;
        char* memory = scratch.take<char>(bytes);
        for (int64_t window : shares_[i].windows) f(alone, window, i, memory);
      });
      return;
    }
    Scratch scratch;
    const int64_t most = std::min(threads_, count());
    std::vector<std::atomic<int64_t>> arrived(most);
    std::vector<char*> memory(most);
    for (auto& place : memory) place = scratch.take<char>(bytes);
#pragma omp parallel num_threads(threads_)
    {
      const int64_t teams = how_many(omp_get_num_threads()), size = omp_get_num_threads() / teams;
      const int64_t thread = omp_get_thread_num(), mine = thread / size;
      if (mine < teams) {
        Team team(thread % size, size, arrived[mine]);
        for (int64_t i = mine; i < count(); i += teams) {
          f(team, shares_[i].windows[0], i, memory[mine]);
          team.wait();
        }
      }
      release_tiles();
    }
  }

 private:
  struct Share {
    std::vector<int64_t> windows;
    int64_t rows;
  };

  // As many teams of n threads as end first, if all windows are as long as the longest. Members take 8 rows at a time,
  // and waiting for one another costs them about as much as 8 rows.
  int64_t how_many(int64_t n) const {
    int64_t best = 1, least = 0;
    for (int64_t teams = 1; teams <= std::min(n, count()); ++teams) {
      const int64_t size = n / teams, rows = round_up((shares_[0].rows + size - 1) / size, 8) + (size > 1 ? 8 : 0);
      const int64_t time = (count() + teams - 1) / teams * rows;
      if (teams == 1 || time <= least) {
        best = teams;
        least = time;
      }
    }
    return best;
  }

  int64_t threads_;
  bool teams_;
  std::vector<Share> shares_;
};

// f(first, count) for the tiles of n rows, at most `most` each (a multiple of BLOCK_ROWS), that are this thread's; they
// start at multiples of 8. Fewer than BLOCK_ROWS rows are no tile of their own, for which all weights would be read
// once more: the tile before takes them, too.
template <class F>
void for_tiles(const Team& team, int64_t n, int64_t most, F&& f) {
  const int64_t share = round_up((n + team.size - 1) / team.size, 8);
  const int64_t end = std::min(n, share * (team.rank + 1));
  const int64_t size =
      round_up((share + (share + most - 1) / most - 1) / ((share + most - 1) / most), std::max<int64_t>(BLOCK_ROWS, 8));
  for (int64_t first = share * team.rank, count; first < end; first += count) {
    count = end - first < size + BLOCK_ROWS ? end - first : size;
    f(first, count);
  }
}

}  // namespace astroco
