// Transposes of matrices.
#pragma once

#include "vec.h"

namespace astroco {

#ifdef CPU_CAPABILITY_AVX512
// The transpose of 16 rows of 16, in registers.
ALWAYS_INLINE void transpose16(__m512 (&rows)[16]) {
  __m512 fours[16];  // fours[4 i + j] has columns j, 4 + j, 8 + j and 12 + j of rows 4 i to 4 i + 3
  for (int i = 0; i < 16; i += 4) {
    auto low = [&](int a) { return _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + a], rows[i + a + 1])); };
    auto high = [&](int a) { return _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + a], rows[i + a + 1])); };
    fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low(0), low(2)));
    fours[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low(0), low(2)));
    fours[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high(0), high(2)));
    fours[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high(0), high(2)));
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x44),
                 b = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x44),
                 c = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xee),
                 d = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xee);
    rows[j] = _mm512_shuffle_f32x4(a, b, 0x88);
    rows[4 + j] = _mm512_shuffle_f32x4(a, b, 0xdd);
    rows[8 + j] = _mm512_shuffle_f32x4(c, d, 0x88);
    rows[12 + j] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
}

ALWAYS_INLINE uint32_t first_bits(int64_t n) { return (uint32_t(1) << n) - 1; }
#endif

// to (columns, rows) = the transpose of `from` (rows, columns).
inline void transpose(const float* from, int64_t ld, int64_t rows, int64_t columns, float* to, int64_t ld_to) {
#ifdef CPU_CAPABILITY_AVX512
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t j = 0; j < columns; j += 16) {
      const int64_t m = std::min<int64_t>(16, rows - i), n = std::min<int64_t>(16, columns - j);
      __m512 block[16];
      for (int k = 0; k < 16; ++k)
        block[k] = k < m ? _mm512_maskz_loadu_ps(first_bits(n), from + (i + k) * ld + j) : _mm512_setzero_ps();
      transpose16(block);
      for (int k = 0; k < 16; ++k)
        if (k < n) _mm512_mask_storeu_ps(to + (j + k) * ld_to + i, first_bits(m), block[k]);
    }
#else
  at::vec::transpose_mxn<float>(from, ld, to, ld_to, int(rows), int(columns));
#endif
}

#ifdef __AMX_BF16__
constexpr int64_t LINE_OF_PAIRS = 32;  // numbers in a cache line

// Rows of a matrix with `columns` columns at a distance that is an odd number of cache lines: rows at an even one would
// share a few sets of the fastest cache.
constexpr int64_t spaced(int64_t columns) {
  return (round_up(columns, LINE_OF_PAIRS) / LINE_OF_PAIRS | 1) * LINE_OF_PAIRS;
}

// The same for BFloat16. to's rows are zero from `rows` on up to the next multiple of LINE_OF_PAIRS.
inline void transpose(const bf16* from, int64_t ld, int64_t rows, int64_t columns, bf16* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; i += 2 * 16)
    for (int64_t j = 0; j < columns; j += 16) {
      const int64_t n = std::min<int64_t>(16, columns - j);
      auto row = [&](int64_t r) {
        return r < rows ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_bits(n), from + r * ld + j))
                        : _mm512_setzero_si512();
      };
      __m512 block[16];  // of pairs
      for (int k = 0; k < 16; ++k)
        block[k] = _mm512_castsi512_ps(_mm512_or_si512(row(i + 2 * k), _mm512_slli_epi32(row(i + 2 * k + 1), 16)));
      transpose16(block);
      for (int k = 0; k < 16; ++k)
        if (k < n) _mm512_storeu_ps(to + (j + k) * ld_to + i, block[k]);
    }
}
#endif

}  // namespace astroco
