// Products of packed weights in Intel's AMX tiles; panels hold weights widened to bf16.
#include <immintrin.h>

#include "packed/amx.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura {
namespace amx {
namespace {

// Two vectors of 16 floats as 16 pairs of bf16, the first of each pair from `even`.
inline __m512i pairs(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both = _mm512_cvtne2ps_pbh(odd, even);
  return _mm512_permutexvar_epi16(order, (__m512i)both);
}

// The scales of 16 channels of a group, and the conversion of their weights to floats. A stored
// weight q is or-ed into the mantissa of a float from bit b on, which gives 2^(23 - b) + q. This
// float times the scale, minus (2^(23 - b) + offset) * scale, is the weight's value. It is exact
// for b >= 8, since scales have 11 significant bits. There is no table, and one shift serves
// several weights.
template <int kBits>
class Scales {
 public:
  explicit Scales(const uint8_t* halves)
      : scale_(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)))) {
    UNROLL for (int i = 0; i < kPlaces; ++i) {
      less_[i] = _mm512_mul_ps(scale_, _mm512_set1_ps((1 << (15 - 4 * i)) + (1 << (kBits - 1))));
    }
  }
  // kBit is the lowest bit of the weight within 32 bits of `all`: 8, or for 4-bit weights 12 or 16.
  template <int kBit>
  __m512 values(__m512i all) const {
    const __m512i one = _mm512_set1_epi32((127 + 23 - kBit) << 23);
    const __m512i mask = _mm512_set1_epi32(((1 << kBits) - 1) << kBit);
    const __m512i sum = _mm512_ternarylogic_epi32(all, mask, one, 0xea);  // (all & mask) | one
    return _mm512_fmsub_ps(_mm512_castsi512_ps(sum), scale_, less_[(kBit - 8) / 4]);
  }

 private:
  static constexpr int kPlaces = kBits == 4 ? 3 : 1;

  __m512 scale_, less_[kPlaces];
};

// Widens an eighth of a group to bf16: 8 inputs of 16 channels.
inline void widen(const uint8_t* quants, const Scales<4>& scales, uint8_t* panel) {
  const __m512i all = _mm512_loadu_si512(quants);
  const __m512i left = _mm512_slli_epi32(all, 8), right = _mm512_srli_epi32(all, 12);
  _mm512_storeu_si512(panel, pairs(scales.values<8>(left), scales.values<8>(all)));
  _mm512_storeu_si512(panel + 64, pairs(scales.values<16>(all), scales.values<12>(right)));
  _mm512_storeu_si512(panel + 128, pairs(scales.values<12>(left), scales.values<12>(all)));
  _mm512_storeu_si512(panel + 192, pairs(scales.values<8>(right), scales.values<16>(right)));
}

inline void widen(const uint8_t* quants, const Scales<8>& scales, uint8_t* panel) {
  UNROLL for (int quad = 0; quad < 2; ++quad) {
    const __m512i all = _mm512_loadu_si512(quants + quad * 128);
    const __m512i left = _mm512_slli_epi32(all, 8);
    const __m512i right = _mm512_srli_epi32(all, 8), far = _mm512_srli_epi32(all, 16);
    _mm512_storeu_si512(panel + quad * 128, pairs(scales.values<8>(left), scales.values<8>(all)));
    _mm512_storeu_si512(panel + quad * 128 + 64,
                        pairs(scales.values<8>(right), scales.values<8>(far)));
  }
}

constexpr int kAhead = 2;  // how many groups before its product a group is widened
constexpr int kTileBytes = 1024;

// A chunk of a unit: at most kChunk consecutive groups.
struct Chunk {
  const uint8_t* unit;  // the chunk's first block
  const uint8_t* next;  // the block at the same place in the next unit, for prefetching
  uint8_t* panel;       // the chunk as bf16
  int groups;
};

// Widens a group in eight parts, which are placed between tile instructions, and prefetches the
// next unit meanwhile. If both threads of a core use tiles, a tile instruction that finds no free
// tile delays all instructions after it; so work placed after all products would wait for them.
template <int kBits>
class Widening {
 public:
  Widening(const Chunk& chunk, int group, int fetched)
      : block_(chunk.unit + group / 2 * block_bytes(kBits)),
        panel_(chunk.panel + group * 2 * kTileBytes),
        half_(group % 2),
        next_(chunk.next + fetched * kLines * 64),
        scales_(block_ + half_ * 32) {}

  void part(int number) {
    if (number == 4) scales_ = Scales<kBits>(block_ + 64 + half_ * 32);
    const uint8_t* quants = block_ + kScaleBytes + half_ * kQuantBytes + number / 4 * 64;
    widen(quants + number % 4 * (kQuantBytes / 4), scales_, panel_ + number * (kTileBytes / 4));
    UNROLL for (int line = number * kLines / 8; line < (number + 1) * kLines / 8; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(next_ + line * 64), _MM_HINT_T1);
    }
  }

 private:
  static constexpr int kLines = block_bytes(kBits) / 2 / 64;
  static constexpr int kQuantBytes = (block_bytes(kBits) - kScaleBytes) / 2;

  const uint8_t* block_;
  uint8_t* panel_;
  int half_;
  const uint8_t* next_;
  Scales<kBits> scales_;
};

// With kBits = 0 the panel is complete, and nothing is widened.
template <>
class Widening<0> {
 public:
  Widening(const Chunk&, int, int) {}
  void part(int) {}
};

// Multiplies a chunk with 16 rows, or with 32 if kTwo. If kMore, the products are added to `out`,
// which has those of earlier chunks. Weights of kBits bits are widened just before their products;
// kBits = 0 means that the panel is complete.
//
// Six tiles are in use: four for sums, one for rows and one for weights. With two each for rows and
// weights all eight would be in use; if the core's other thread also used eight, few would be left
// for renaming. Measured with eight tiles: 240 Gmac/s a core instead of 370 when both threads of
// the core use tiles, and 865 instead of 840 when one does.
template <int kBits, bool kTwo, bool kMore>
void add(const Chunk& chunk, const uint16_t* rows, const uint16_t* more, float* out) {
  constexpr int kPitch = kUnit * sizeof(float), kDown = BfloatRows::kTileRows * kUnit;
  for (int group = 0; group < kAhead; ++group) {
    Widening<kBits> widening(chunk, group, group);
    UNROLL for (int part = 0; part < 8; ++part) widening.part(part);
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
    // When no later group is left, the current group is widened again, to the same bytes.
    const int ahead = group + kAhead;
    Widening<kBits> widening(chunk, ahead < chunk.groups ? ahead : group, group);
    _tile_loadd(6, weights, 64);
    widening.part(0);
    _tile_loadd(7, rows + at, 64);
    widening.part(1);
    _tile_dpbf16ps(0, 7, 6);
    widening.part(2);
    if constexpr (kTwo) _tile_loadd(7, more + at, 64);
    widening.part(3);
    if constexpr (kTwo) _tile_dpbf16ps(2, 7, 6);
    widening.part(4);
    _tile_loadd(6, weights + kTileBytes, 64);
    widening.part(5);
    if constexpr (kTwo) _tile_dpbf16ps(3, 7, 6);
    widening.part(6);
    if constexpr (kTwo) _tile_loadd(7, rows + at, 64);
    widening.part(7);
    _tile_dpbf16ps(1, 7, 6);
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
