// What every instruction set implements: products of one unit of packed weights with a few rows.
#pragma once

#include <cstdint>

#include "machine/cpu.h"
#include "packed/format.h"

namespace mixtura {

// Activations of one row, quantised: q in -127..127 for each input, padded by zeros to whole
// blocks; a scale for every `span` inputs; and for every 32 the sum of q times minus the offset of
// the weights, which makes up for their being stored unsigned.
struct Row {
  const int8_t* q;
  const float* scale;
  const int32_t* offset;
};

// Inputs that share a scale: by phase, so that a row's sums do not depend on its neighbours.
constexpr int kDecodeSpan = 32;
constexpr int kPrefillSpan = 128;

// The int8 terms that an activation is the sum of. Eight-bit weights are finer than one term, whose
// rounding would be the most of what they lose: the second is what the first leaves, rounded.
constexpr int terms_for(int bits) { return bits == 8 ? 2 : 1; }

// Where a reader will be: beyond `end` it goes on at `next`.
struct Ahead {
  const uint8_t* end;
  const uint8_t* next;
  int64_t distance;  // of what is fetched into the first-level cache; 0: nothing is fetched

  const uint8_t* from(const uint8_t* at, int64_t bytes) const {
    return at + bytes < end ? at + bytes : next + (at + bytes - end);
  }
};

// So much farther ahead lines are fetched into the second-level cache, whose queue to memory is
// longer: with the first-level one alone, a row's products read at 0.91 of what raw reads do.
constexpr int64_t kFarther = 4096;

enum class Activation : int { swiglu, swiglu_clamped, geglu, geglu_tanh, gelu, relu };

constexpr bool is_gated(Activation kind) { return kind < Activation::gelu; }

struct Kernels {
  const char* name;
  // The most rows that `unit` takes at once; more are cut into tiles of nearly one height.
  int most_rows;
  // From this many rows on it pays to widen a unit of 4-bit weights to bytes first.
  int widen_from;

  // out[row * kUnit + channel], the product of a unit with `count` rows. One order of summation,
  // whatever `count` and `bits`: exact integers over 32 inputs, then fp32, group by group.
  void (*unit)(int bits, int span, const uint8_t* unit, int blocks, const Row* rows, int count,
               const Ahead& ahead, float* out);

  // A 4-bit unit in the layout of 8-bit ones: its offset stays 8.
  void (*widen)(const uint8_t* four, int blocks, uint8_t* eight);

  // x[inputs] as a Row; q is padded to whole blocks, and so are scale and offset.
  void (*quantise)(const float* x, int inputs, int span, int weight_offset, int8_t* q, float* scale,
                   int32_t* offset);

  // h[rows * kUnit], a unit's products, into a[row * stride]: 16 values of a gated activation, from
  // 16 gates and the 16 ups after them, else 32.
  void (*activate)(Activation kind, const float* h, int rows, float* a, int64_t stride);
};

const Kernels& plain_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

// AMX computes its int8 products in AVX-512.
const Kernels& kernels_of(InstructionSet set);

}  // namespace mixtura
