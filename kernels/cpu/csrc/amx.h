// Matrix products of BFloat16 or int8 by AMX, Intel's tile registers: one instruction multiplies 16 rows of 32 numbers
// (64 of int8) with 32 (64) rows of 16, where AVX-512 multiplies 32 (64) numbers with as many.
//
// A tile register is up to 16 rows of 64 bytes. A tile of A is 16 rows by 32 (64) steps of K, loaded as it lies in
// memory. A tile of B is 16 groups of K, pairs of BFloat16 or fours of int8, by 16 columns, which is how panels
// (gemm.h) hold it. A tile of C is 16 x 16 float, or int32.
#pragma once

#ifdef __AMX_BF16__

#include <immintrin.h>

#include "vec.h"

namespace astroco {

constexpr int64_t TILE = 16;  // rows, columns of C, and groups of K

// The shapes of this thread's tile registers, as LDTILECFG reads them: C's are 0 to 3; A's and B's are 4 and 6 over
// TILE groups of K, 5 and 7 over what K leaves over, or as 4 and 6 where it leaves nothing. Loading shapes takes as
// long as a dozen products of tiles, so a thread keeps them until other ones are needed or its part of an op ends.
class TileShapes {
 public:
  // For m rows, at most TILE, and `rest` groups of K left over. Returns whether all registers have one shape; where
  // nothing is left over, they need not unless that is `wanted`.
  static bool load(int64_t m, int64_t rest, bool wanted) {
    TileShapes& now = of_thread();
    if (rest == 0) rest = wanted || now.rows_[0] != m ? TILE : now.rows_[7];
    if (now.rows_[0] != m || now.rows_[7] != rest) {
      for (int64_t i = 0; i < 4; ++i) now.set(i, m, TILE);
      now.set(4, m, TILE);
      now.set(5, m, rest);
      now.set(6, TILE, TILE);
      now.set(7, rest, TILE);
      asm volatile("" : : "r"(&now) : "memory");  // GCC's intrinsic does not say that it reads all of it
      _tile_loadconfig(&now);
    }
    return rest == TILE;
  }

  static void release() {
    TileShapes& now = of_thread();
    if (now.rows_[0] == 0) return;
    _tile_release();
    now.rows_[0] = 0;
  }

 private:
  static TileShapes& of_thread() {
    static thread_local TileShapes shapes;
    return shapes;
  }
  void set(int64_t tile, int64_t height, int64_t numbers) {  // numbers of four bytes
    const bool used = height > 0 && numbers > 0;
    rows_[tile] = uint8_t(used ? height : 0);
    bytes_[tile] = uint16_t(used ? 4 * numbers : 0);
  }

  alignas(64) uint8_t palette_ = 1;
  uint8_t start_ = 0, reserved_[14] = {};
  uint16_t bytes_[16] = {};  // of a row
  uint8_t rows_[16] = {};
};

// What a type's products add up to.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>;

// One step of K for the block below. Registers have literal numbers in GCC, hence macros.
#define ASTROCO_TILE_MULTIPLY(C, A, B)       \
  if constexpr (std::is_same_v<T, int8_t>) { \
    _tile_dpbssd(C, A, B);                   \
  } else {                                   \
    _tile_dpbf16ps(C, A, B);                 \
  }
#define ASTROCO_TILE_STEP(A, B)                \
  _tile_loadd(A, a, a_bytes);                  \
  _tile_loadd(B, b, b_bytes);                  \
  ASTROCO_TILE_MULTIPLY(0, A, B)               \
  if constexpr (N > 1) {                       \
    _tile_loadd(B, b + G * TILE, b_bytes);     \
    ASTROCO_TILE_MULTIPLY(1, A, B)             \
  }                                            \
  if constexpr (M == 2) {                      \
    _tile_loadd(A, a + TILE * lda, a_bytes);   \
    if constexpr (N > 1) {                     \
      ASTROCO_TILE_MULTIPLY(3, A, B)           \
      _tile_loadd(B, b, b_bytes);              \
    }                                          \
    ASTROCO_TILE_MULTIPLY(2, A, B)             \
  }                                            \
  if constexpr (M == 1 && N > 2) {             \
    _tile_loadd(B, b + 2 * G * TILE, b_bytes); \
    ASTROCO_TILE_MULTIPLY(2, A, B)             \
  }                                            \
  if constexpr (M == 1 && N > 3) {             \
    _tile_loadd(B, b + 3 * G * TILE, b_bytes); \
    ASTROCO_TILE_MULTIPLY(3, A, B)             \
  }

// M by N tiles of C, 2 by 2 at most or 1 by 4. B has `ldb` columns.
template <int M, int N, class T>
inline void tile_block(const T* a, int64_t lda, int64_t groups, const T* b, int64_t ldb, Sum<T>* c, int64_t ldc,
                       bool add, bool one_shape) {
  constexpr int64_t G = 4 / sizeof(T);
  const int64_t a_bytes = sizeof(T) * lda, b_bytes = 4 * ldb, c_bytes = 4 * ldc;
  Sum<T>*third = M == 2 ? c + TILE * ldc : c + 2 * TILE, *fourth = third + TILE;
  if (add) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (N > 1) _tile_loadd(1, c + TILE, c_bytes);
    if constexpr (M == 2 || N > 2) _tile_loadd(2, third, c_bytes);
    if constexpr (M * N == 4) _tile_loadd(3, fourth, c_bytes);
  } else {
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (M == 2 || N > 2) _tile_zero(2);
    if constexpr (M * N == 4) _tile_zero(3);
  }
  if constexpr (M == 2 && N == 2) {
    if (groups % TILE == 0 && one_shape)  // each tile is loaded once
      for (; groups > 0; groups -= TILE, a += G * TILE, b += G * TILE * ldb) {
        _tile_loadd(6, b, b_bytes);
        _tile_loadd(4, a, a_bytes);
        ASTROCO_TILE_MULTIPLY(0, 4, 6)
        _tile_loadd(7, b + G * TILE, b_bytes);
        ASTROCO_TILE_MULTIPLY(1, 4, 7)
        _tile_loadd(5, a + TILE * lda, a_bytes);
        ASTROCO_TILE_MULTIPLY(2, 5, 6)
        ASTROCO_TILE_MULTIPLY(3, 5, 7)
      }
  }
  for (; groups >= TILE; groups -= TILE, a += G * TILE, b += G * TILE * ldb) {
    ASTROCO_TILE_STEP(4, 6)
  }
  if (groups > 0) {
    ASTROCO_TILE_STEP(5, 7)
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (N > 1) _tile_stored(1, c + TILE, c_bytes);
  if constexpr (M == 2 || N > 2) _tile_stored(2, third, c_bytes);
  if constexpr (M * N == 4) _tile_stored(3, fourth, c_bytes);
}

// C (m, N TILE) = A B or C += A B, A row-major, B a panel of `groups` groups of K. Rows and K that do not fill a tile
// go to smaller ones, so a row's products do not depend on where it lies.
template <int N, class T>
void tile_panel(const T* a, int64_t lda, int64_t m, int64_t groups, const T* b, Sum<T>* c, int64_t ldc, bool add) {
  constexpr int64_t columns = N * TILE, half = 2 * TILE, G = 4 / sizeof(T);
  constexpr int64_t MANY = 8 * TILE;  // groups of K that are worth one shape
  int64_t r = 0;
  const bool one_shape = TileShapes::load(std::min(m, TILE), groups % TILE, groups >= MANY || sizeof(T) == 1);
  for (; r + 2 * TILE <= m; r += 2 * TILE) {
    tile_block<2, std::min(N, 2)>(a + r * lda, lda, groups, b, columns, c + r * ldc, ldc, add, one_shape);
    if constexpr (N > 2) {
      tile_block<2, N - 2>(a + r * lda, lda, groups, b + G * half, columns, c + r * ldc + half, ldc, add, one_shape);
    }
  }
  for (; r < m; r += TILE) {
    // Other shapes take long to load: the last rows are computed with some before them, which get the same bits again.
    if (!add && m >= TILE) r = std::min(r, m - TILE);
    TileShapes::load(std::min(m - r, TILE), groups % TILE, false);
    tile_block<1, N>(a + r * lda, lda, groups, b, columns, c + r * ldc, ldc, add, false);
  }
}

template <class T>
void tile_product(const T* a, int64_t lda, int64_t m, int64_t groups, const T* b, int64_t columns, Sum<T>* c,
                  int64_t ldc, bool add) {
  asm volatile("" : : : "memory");  // GCC's intrinsics do not say that they read A and B: whatever was written there is
  switch (columns / TILE) {
    case 1: return tile_panel<1>(a, lda, m, groups, b, c, ldc, add);
    case 2: return tile_panel<2>(a, lda, m, groups, b, c, ldc, add);
    case 3: return tile_panel<3>(a, lda, m, groups, b, c, ldc, add);
    default: return tile_panel<4>(a, lda, m, groups, b, c, ldc, add);
  }
}

// What a thread does at the end of its part of an op: others use AMX too, PyTorch among them.
inline void release_tiles() { TileShapes::release(); }

}  // namespace astroco

#else

namespace astroco {
inline void release_tiles() {}
}  // namespace astroco

#endif
