// Vectors of sixteen floats, for files that are compiled with AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mixtura {
namespace {

struct Vec {
  using V = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;

  static V zero() { return _mm512_setzero_ps(); }
  static V all(float x) { return _mm512_set1_ps(x); }
  static V load(const float* x) { return _mm512_loadu_ps(x); }
  static V load(const uint16_t* x) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static V load(const int8_t* x) {
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static V load_some(const float* x, int count) { return _mm512_maskz_loadu_ps(first(count), x); }
  static V load_some(const uint16_t* x, int count) {
    return widened(_mm256_maskz_loadu_epi16(first(count), x));
  }
  static V load_some(const int8_t* x, int count) {
    return widened(_mm_maskz_loadu_epi8(first(count), x));
  }
  static void store(float* x, V v) { _mm512_storeu_ps(x, v); }

  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V larger(V a, V b) { return _mm512_max_ps(a, b); }
  static float largest(V v) { return _mm512_reduce_max_ps(v); }
  static float sum(V v) { return _mm512_reduce_add_ps(v); }
  static V sums(V (&x)[16]) {
    // Lane i of the result is the sum of x[i]. Each step halves the number of vectors: it adds two
    // halves of each vector, and puts the sums of two vectors into one.
    V eight[8], four[4], two[2];
    for (int i = 0; i < 8; ++i) {
      const V low = _mm512_shuffle_f32x4(x[i], x[i + 8], 0x44);
      const V high = _mm512_shuffle_f32x4(x[i], x[i + 8], 0xee);
      eight[i] = _mm512_add_ps(low, high);
    }
    for (int i = 0; i < 4; ++i) {
      const V even = _mm512_shuffle_f32x4(eight[i], eight[i + 4], 0x88);
      const V odd = _mm512_shuffle_f32x4(eight[i], eight[i + 4], 0xdd);
      four[i] = _mm512_add_ps(even, odd);
    }
    // The four blocks of four lanes in four[i] now have sums of x[i], x[i + 8], x[i + 4] and
    // x[i + 12].
    for (int i = 0; i < 2; ++i) {
      const V low = _mm512_shuffle_ps(four[i], four[i + 2], 0x44);
      const V high = _mm512_shuffle_ps(four[i], four[i + 2], 0xee);
      two[i] = _mm512_add_ps(low, high);
    }
    const V even = _mm512_shuffle_ps(two[0], two[1], 0x88);
    const V odd = _mm512_shuffle_ps(two[0], two[1], 0xdd);
    // The lanes of a block now have sums of x[i], x[i + 2], x[i + 1], x[i + 3]. Two permutations
    // sort lanes and blocks.
    const V sum = _mm512_permute_ps(_mm512_add_ps(even, odd), 0xd8);
    return _mm512_shuffle_f32x4(sum, sum, 0xd8);
  }
  static void transpose(V (&x)[16]) {
    V pairs[16], fours[16], eights[16];
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int half = 0; half < 2; ++half) {
        const V a = pairs[i + half], b = pairs[i + 2 + half];
        fours[i + 2 * half] = _mm512_shuffle_ps(a, b, 0x44);
        fours[i + 2 * half + 1] = _mm512_shuffle_ps(a, b, 0xee);
      }
    }
    // fours[4 j + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 j .. 4 j + 3.
    for (int c = 0; c < 4; ++c) {
      for (int half = 0; half < 2; ++half) {
        const V a = fours[8 * half + c], b = fours[8 * half + 4 + c];
        eights[8 * half + c] = _mm512_shuffle_f32x4(a, b, 0x88);
        eights[8 * half + 4 + c] = _mm512_shuffle_f32x4(a, b, 0xdd);
      }
    }
    for (int c = 0; c < 4; ++c) {
      x[c] = _mm512_shuffle_f32x4(eights[c], eights[8 + c], 0x88);
      x[c + 8] = _mm512_shuffle_f32x4(eights[c], eights[8 + c], 0xdd);
      x[c + 4] = _mm512_shuffle_f32x4(eights[4 + c], eights[12 + c], 0x88);
      x[c + 12] = _mm512_shuffle_f32x4(eights[4 + c], eights[12 + c], 0xdd);
    }
  }
  // p * 2^n, with n in the low bits of `shifted`.
  static V times_power(V p, V shifted) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power));
  }
  static V zero_below(V x, float bound, V value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(bound), _CMP_NLT_UQ), value);
  }

 private:
  static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
  static V widened(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static V widened(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }
};

}  // namespace
}  // namespace mixtura
