#include <immintrin.h>

#include "limits/limits.h"

namespace mixtura::limits {

uint64_t read_avx2(const uint8_t* bytes, int64_t count) {
  __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                     _mm256_setzero_si256()};
  for (int64_t i = 0; i + 128 <= count; i += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(bytes + i + 2048), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(bytes + i + 2112), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const auto* at = reinterpret_cast<const __m256i*>(bytes + i + j * 32);
      sums[j] = _mm256_add_epi64(sums[j], _mm256_loadu_si256(at));
    }
  }
  alignas(32) uint64_t each[4];
  const __m256i sum = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]),
                                       _mm256_add_epi64(sums[2], sums[3]));
  _mm256_store_si256(reinterpret_cast<__m256i*>(each), sum);
  return each[0] + each[1] + each[2] + each[3];
}

void spin_int8_avx2(int64_t rounds) {
  __m256i sums[8];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const __m256i a = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      __m256i pairs = a;
      asm volatile("vpmaddubsw %1, %0, %0" : "+x"(pairs) : "x"(a));
      asm volatile("vpmaddwd %1, %0, %0" : "+x"(pairs) : "x"(ones));
      asm volatile("vpaddd %1, %0, %0" : "+x"(sums[i]) : "x"(pairs));
    }
  }
}

}  // namespace mixtura::limits
