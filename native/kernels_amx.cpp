#include <immintrin.h>

#include "amx.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura {
namespace amx {
namespace {

struct alignas(64) Shape {
  uint8_t palette = 1;
  uint8_t start = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Two vectors of 16 floats as 16 pairs of bf16, the first of each pair from `even`.
inline __m512i pairs(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both = _mm512_cvtne2ps_pbh(odd, even);
  return _mm512_permutexvar_epi16(order, (__m512i)both);
}

inline __m512 scales_of(const uint8_t* halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

// A shift and a look-up for each weight: the table's index is the low four bits of each channel.
inline void widen_four(const uint8_t* quants, __m512 scale, uint8_t* panel) {
  const __m512 table = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  UNROLL for (int pair = 0; pair < 4; ++pair) {
    const __m512i all = _mm512_loadu_si512(quants + pair * 128);
    UNROLL for (int p = 0; p < 4; ++p) {
      const int shift = (p % 2) * 16 + (p / 2) * 4;
      const __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(all, shift), table);
      const __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(all, shift + 8), table);
      _mm512_storeu_si512(panel + (pair * 4 + p) * 64,
                          pairs(_mm512_mul_ps(even, scale), _mm512_mul_ps(odd, scale)));
    }
  }
}

inline __m512 byte_of(__m512i all, int byte, __m512 scale) {
  const __m512i own = _mm512_and_si512(_mm512_srli_epi32(all, 8 * byte), _mm512_set1_epi32(255));
  const __m512i whole = _mm512_sub_epi32(own, _mm512_set1_epi32(128));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);
}

inline void widen_eight(const uint8_t* quants, __m512 scale, uint8_t* panel) {
  UNROLL for (int quad = 0; quad < 8; ++quad) {
    const __m512i all = _mm512_loadu_si512(quants + quad * 128);
    _mm512_storeu_si512(panel + quad * 128, pairs(byte_of(all, 0, scale), byte_of(all, 1, scale)));
    _mm512_storeu_si512(panel + quad * 128 + 64,
                        pairs(byte_of(all, 2, scale), byte_of(all, 3, scale)));
  }
}

}  // namespace

void configure() {
  Shape shape;
  for (int tile = 0; tile < 8; ++tile) {
    shape.bytes[tile] = 64;
    shape.rows[tile] = BfloatRows::kTileRows;
  }
  // The intrinsic names 8 of the 64 bytes that it reads, and compilers drop the others.
  asm volatile("" : : "r"(&shape) : "memory");
  _tile_loadconfig(&shape);
}

void release() { _tile_release(); }

namespace {

constexpr int kAhead = 2;  // groups between widening and product
constexpr int kTileBytes = 1024;

// What a chunk of a unit is multiplied from.
struct Chunk {
  const uint8_t* unit;  // its first block
  const uint8_t* next;  // what is read as long after it as a whole unit is
  uint8_t* panel;
  int groups;
};

// 32 inputs of a unit's 32 channels.
template <int kBits>
inline void widen(const Chunk& chunk, int group) {
  constexpr size_t kStep = block_bytes(kBits), kHalf = (kStep - kScaleBytes) / 2;
  const uint8_t* block = chunk.unit + group / 2 * kStep;
  uint8_t* panel = chunk.panel + group * 2 * kTileBytes;
  UNROLL for (int tile = 0; tile < 2; ++tile) {
    const __m512 scale = scales_of(block + tile * 64 + group % 2 * 32);
    const uint8_t* quants = block + kScaleBytes + group % 2 * kHalf + tile * 64;
    if constexpr (kBits == 4) {
      widen_four(quants, scale, panel + tile * kTileBytes);
    } else {
      widen_eight(quants, scale, panel + tile * kTileBytes);
    }
  }
}

template <int kBits>
inline void fetch(const Chunk& chunk, int group) {
  constexpr int kLines = block_bytes(kBits) / 2 / 64;
  const uint8_t* from = chunk.next + group * kLines * 64;
  UNROLL for (int line = 0; line < kLines; ++line) {
    _mm_prefetch(reinterpret_cast<const char*>(from + line * 64), _MM_HINT_T1);
  }
}

// 16 rows, or 32 (kTwo), added to what `out` has of earlier chunks (kMore). kBits: those that are
// widened on the way, just before the tiles need them, so that the vector units work while tiles are
// multiplied; 0 where the panel is there. Memory is read a whole unit ahead meanwhile.
//
// Rows and weights pass through one tile each. With two each there would be eight tiles in use, and
// where another thread of the core has eight as well, few are left to rename: measured, products at
// 240 Gmac/s a core instead of 370, and where the core is ours alone at 865 instead of 840.
template <int kBits, bool kTwo, bool kMore>
void add(const Chunk& chunk, const uint16_t* rows, const uint16_t* more, float* out) {
  constexpr int kPitch = kUnit * sizeof(float), kDown = BfloatRows::kTileRows * kUnit;
  if constexpr (kBits != 0) {
    for (int group = 0; group < kAhead; ++group) widen<kBits>(chunk, group);
  }
  if constexpr (kMore) {
    _tile_loadd(0, out, kPitch);
    _tile_loadd(1, out + kTile, kPitch);
    if constexpr (kTwo) {
      _tile_loadd(2, out + kDown, kPitch);
      _tile_loadd(3, out + kDown + kTile, kPitch);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int group = 0; group < chunk.groups; ++group) {
    const uint8_t* weights = chunk.panel + group * 2 * kTileBytes;
    const int at = group * kTileBytes / 2;
    _tile_loadd(6, weights, 64);
    _tile_loadd(7, rows + at, 64);
    _tile_dpbf16ps(0, 7, 6);
    if constexpr (kTwo) {
      _tile_loadd(7, more + at, 64);
      _tile_dpbf16ps(2, 7, 6);
    }
    _tile_loadd(6, weights + kTileBytes, 64);
    if constexpr (kTwo) {
      _tile_dpbf16ps(3, 7, 6);
      _tile_loadd(7, rows + at, 64);
    }
    _tile_dpbf16ps(1, 7, 6);
    if constexpr (kBits != 0) {
      if (group + kAhead < chunk.groups) widen<kBits>(chunk, group + kAhead);
      fetch<kBits>(chunk, group);
    }
  }
  _tile_stored(0, out, kPitch);
  _tile_stored(1, out + kTile, kPitch);
  if constexpr (kTwo) {
    _tile_stored(2, out + kDown, kPitch);
    _tile_stored(3, out + kDown + kTile, kPitch);
  }
}

template <int kBits, bool kMore>
void add_chunk(const Chunk& chunk, const BfloatRows& rows, int64_t first, int from, int count,
               float* out) {
  constexpr int kRows = 2 * BfloatRows::kTileRows;
  for (int done = 0; done < count; done += kRows, out += kRows * kUnit) {
    const uint16_t* upper = rows.tile(first + done, from);
    const uint16_t* lower = rows.tile(first + done + BfloatRows::kTileRows, from);
    const bool two = count - done > BfloatRows::kTileRows;
    if (done == 0) {
      (two ? add<kBits, true, kMore> : add<kBits, false, kMore>)(chunk, upper, lower, out);
    } else {
      (two ? add<0, true, kMore> : add<0, false, kMore>)(chunk, upper, lower, out);
    }
  }
}

template <int kBits>
void multiply_by(const uint8_t* unit, int groups, const uint8_t* next, const BfloatRows& rows,
                 int64_t first, int count, uint8_t* panel, float* out) {
  for (int from = 0; from < groups; from += kChunk) {
    const size_t passed = from / 2 * block_bytes(kBits);
    const int some = groups - from < kChunk ? groups - from : kChunk;
    const Chunk chunk{unit + passed, next + passed, panel, some};
    if (from == 0) {
      add_chunk<kBits, false>(chunk, rows, first, from, count, out);
    } else {
      add_chunk<kBits, true>(chunk, rows, first, from, count, out);
    }
  }
}

}  // namespace

void multiply(int bits, const uint8_t* unit, int blocks, const uint8_t* next, const BfloatRows& rows,
              int64_t first, int count, uint8_t* panel, float* out) {
  (bits == 4 ? multiply_by<4> : multiply_by<8>)(unit, 2 * blocks, next, rows, first, count, panel,
                                                out);
}

}  // namespace amx

void BfloatRows::put(int64_t number, int from, const float* x, int count) const {
  uint16_t* to = values + number / kTileRows * kTileRows * inputs + number % kTileRows * kGroup +
                 int64_t{from} * kTileRows;
  const int padded = static_cast<int>(round_up(count, kBlock));
  for (int i = 0; i < padded; i += kTile) {
    const int left = count - i;
    const __mmask16 given = left >= kTile ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(given, x + i));
    uint16_t* place = to + i / kGroup * kTileRows * kGroup + i % kGroup;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), (__m256i)rounded);
  }
}

}  // namespace mixtura
