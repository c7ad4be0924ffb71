// The two arithmetics of products with packed weights: int8 (with the span of decode or prefill,
// and one or two terms), and bf16 in AMX tiles. Both classes have the same members, so that
// linear.cpp and experts.cpp are templates over the class.
#pragma once

#include "machine/cpu.h"
#include "packed/amx.h"
#include "packed/kernels.h"
#include "packed/rows.h"

namespace mixtura {

// Prefill reads prompts, many rows at once; decode adds one token to each sequence. Verify reads
// several tokens of a sequence at once, with the same bits as several steps of decode.
enum class Phase : int { decode, prefill, verify };

constexpr bool reads_prompts(Phase phase) { return phase == Phase::prefill; }

// How many bytes ahead to prefetch. Measured: 2,304 are best for one row, and 4,608 for more. A row
// of two terms counts as two rows.
inline int64_t distance_for(int64_t rows, int bits) {
  return rows * terms_for(bits) == 1 ? 2304 : 4608;
}

// Maps row i to row numbers[i] of a table, or to i if `numbers` is null.
struct Numbered {
  const int32_t* numbers;
  int64_t operator[](int64_t i) const { return numbers == nullptr ? i : numbers[i]; }
};

class ByteProducts {
 public:
  using Rows = ByteRows;

  ByteProducts(const Kernels& kernels, int span, int terms)
      : kernels_(kernels), span_(span), terms_(terms) {}

  const Kernels& kernels() const { return kernels_; }
  // Hidden values are quantised this many inputs at a time, or kBlock if that is more.
  int span() const { return span_; }
  // Whether an expert's rows must be consecutive in memory, starting at a multiple of kRowTile.
  static constexpr bool kGathers = false;
  static constexpr int kRowTile = 1;

  Rows rows_in(Carver& carver, int64_t rows, int inputs) const {
    return ByteRows::in(carver, rows, inputs, span_, terms_);
  }
  void put(const Rows& rows, int64_t number, int from, const float* x, int count,
           int weight_offset) const {
    rows.put(kernels_, number, from, x, count, weight_offset);
  }

  // The bytes of a thread's scratch for one widened unit.
  static size_t unit_scratch(int inputs) {
    return block_bytes(8) * (round_up(inputs, kBlock) / kBlock);
  }
  void begin() const {}
  void end() const {}

  // Writes out[i * kUnit + channel], the product of a unit with row numbers[first + i] of x, for
  // i < count. `out` has room for whole tiles of kRowTile rows.
  void multiply(const Matrix& matrix, const uint8_t* unit, const Rows& x, Numbered numbers,
                int64_t first, int64_t count, const Ahead& ahead, uint8_t* scratch,
                float* out) const {
    int bits = matrix.bits;
    const Ahead still{unit, unit, 0};
    bool fetched = false;
    if (bits == 4 && count >= kernels_.widen_from) {
      kernels_.widen(unit, matrix.blocks(), scratch);
      unit = scratch;
      bits = 8;
      fetched = true;
    }
    // Both terms of a row are in the same tile, so that weights are read once for both.
    const int most = kernels_.most_rows / terms_;
    const int64_t tiles = (count + most - 1) / most;
    Row rows[kMostRows];
    alignas(64) float sums[kMostRows * kUnit];
    int64_t done = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      // Tiles have nearly equal heights, since a last tile of one row would have a sixth of the
      // speed.
      const int height = static_cast<int>(count / tiles + (tile < count % tiles));
      for (int i = 0; i < height; ++i) {
        const int64_t number = numbers[first + done + i];
        for (int term = 0; term < terms_; ++term) rows[i * terms_ + term] = x.term(number, term);
      }
      float* to = out + done * kUnit;
      kernels_.unit(bits, span_, unit, matrix.blocks(), rows, height * terms_,
                    fetched ? still : ahead, terms_ == 1 ? to : sums);
      if (terms_ == 2) add_terms(sums, height, to);
      done += height;
      fetched = true;
    }
  }

 private:
  static constexpr int kMostRows = 8;  // the largest Kernels::most_rows

  static void add_terms(const float* sums, int rows, float* out) {
    for (int row = 0; row < rows; ++row, out += kUnit, sums += 2 * kUnit) {
      for (int i = 0; i < kUnit; ++i) out[i] = sums[i] + sums[kUnit + i];
    }
  }

  const Kernels& kernels_;
  const int span_;
  const int terms_;
};

#if defined(__x86_64__)
class AmxProducts {
 public:
  using Rows = BfloatRows;

  explicit AmxProducts(const Kernels& kernels) : kernels_(kernels) {}

  const Kernels& kernels() const { return kernels_; }
  int span() const { return kBlock; }
  static constexpr bool kGathers = true;
  static constexpr int kRowTile = Rows::kTileRows;

  Rows rows_in(Carver& carver, int64_t rows, int inputs) const {
    return BfloatRows::in(carver, rows, inputs);
  }
  void put(const Rows& rows, int64_t number, int from, const float* x, int count, int) const {
    rows.put(number, from, x, count);
  }
  static size_t unit_scratch(int) { return amx::kPanelBytes; }
  void begin() const { amx::configure(); }
  void end() const { amx::release(); }

  void multiply(const Matrix& matrix, const uint8_t* unit, const Rows& x, Numbered,
                int64_t first, int64_t count, const Ahead& ahead, uint8_t* scratch,
                float* out) const {
    const uint8_t* next = ahead.from(unit, static_cast<int64_t>(matrix.unit_bytes()));
    amx::multiply(matrix.bits, unit, matrix.blocks(), next, x, first, static_cast<int>(count),
                  scratch, out);
  }

 private:
  const Kernels& kernels_;
};
#endif

// Calls f with the products class for the phase, the instruction set and the bits of the weights.
template <class Function>
auto with_products(Phase phase, InstructionSet set, int bits, Function f) {
  const Kernels& kernels = kernels_of(set);
#if defined(__x86_64__)
  if (reads_prompts(phase) && set == InstructionSet::amx) return f(AmxProducts(kernels));
#endif
  const int span = reads_prompts(phase) ? kPrefillSpan : kDecodeSpan;
  return f(ByteProducts(kernels, span, terms_for(bits)));
}

}  // namespace mixtura
