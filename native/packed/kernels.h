// The kernels that each instruction set implements: products of one unit of packed weights (32
// output channels, see format.h) with a few rows of activations.
#pragma once

#include <cstdint>

#include "machine/cpu.h"
#include "packed/format.h"

namespace mixtura {

// The activations of one row, quantised to int8. `q` is in -127..127, with zeros up to whole blocks
// of inputs. `scale` has a number for every `span` inputs. For every 32 inputs, `offset` is the sum
// of q times minus the weights' offset, because weights are stored unsigned.
struct Row {
  const int8_t* q;
  const float* scale;
  const int32_t* offset;
};

// The inputs that share a scale (a span). A span depends only on the phase, so that a row's sums do
// not depend on the other rows of its batch.
constexpr int kDecodeSpan = 32;
constexpr int kPrefillSpan = 128;

// An activation is the sum of this many int8 terms. With 8-bit weights, the rounding of a single
// term would cause most of the error, so a second term holds the rounded remainder of the first.
constexpr int terms_for(int bits) { return bits == 8 ? 2 : 1; }

// Where to prefetch: weights are read up to `end`, and then from `next` on.
struct Ahead {
  const uint8_t* end;
  const uint8_t* next;
  int64_t distance;  // bytes ahead of the reads to prefetch into the L1 cache; 0: no prefetching

  const uint8_t* from(const uint8_t* at, int64_t bytes) const {
    return at + bytes < end ? at + bytes : next + (at + bytes - end);
  }
};

// Lines this many bytes beyond Ahead::distance are prefetched into the L2 cache, whose queue to
// memory is longer. With the L1 cache alone, the products of one row read memory at 0.91 of full
// speed.
constexpr int64_t kFarther = 4096;

enum class Activation : int { swiglu, swiglu_clamped, geglu, geglu_tanh, gelu, relu };

constexpr bool is_gated(Activation kind) { return kind < Activation::gelu; }

struct Kernels {
  const char* name;
  // The most rows that `unit` takes at once. More rows are cut into tiles of nearly equal height.
  int most_rows;
  // From this many rows on, it is faster to widen a unit of 4-bit weights to bytes first.
  int widen_from;

  // Writes the product of a unit with `count` rows to out[row * kUnit + channel]. The order of
  // summation is the same for any `count` and `bits`: exact integer sums over 32 inputs, which are
  // then added in fp32, group by group.
  void (*unit)(int bits, int span, const uint8_t* unit, int blocks, const Row* rows, int count,
               const Ahead& ahead, float* out);

  // Converts a 4-bit unit to the layout of 8-bit units. The offset of its weights remains 8.
  void (*widen)(const uint8_t* four, int blocks, uint8_t* eight);

  // Quantises x[inputs] to the arrays of a Row, which are padded to whole blocks.
  void (*quantise)(const float* x, int inputs, int span, int weight_offset, int8_t* q, float* scale,
                   int32_t* offset);

  // Applies an activation to h[rows * kUnit], the products of one unit, and writes the result to
  // a[row * stride]. A gated activation has 16 results, from 16 gates and the 16 ups after them;
  // any other has 32.
  void (*activate)(Activation kind, const float* h, int rows, float* a, int64_t stride);
};

const Kernels& plain_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

// For `amx`, int8 products are those of AVX-512.
const Kernels& kernels_of(InstructionSet set);

}  // namespace mixtura
