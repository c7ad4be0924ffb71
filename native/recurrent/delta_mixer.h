// The mixer of Gated DeltaNet between its projections, for rows of any mix of sequences.
#pragma once

#include <cstdint>

#include "attention/kernels.h"
#include "machine/cpu.h"
#include "machine/pool.h"

namespace mixtura {

// Inputs that a convolution may cover.
constexpr int kTapsMost = 16;

struct DeltaMixer {
  int key_heads;
  int value_heads;
  int key_dim;
  int value_dim;
  int taps;
  // [taps][channels]
  const float* conv;
  // Of each value head: a step of length 1 leaves e^-rate of the state.
  const float* rate;
  const float* step_bias;
  // [value_dim]
  const float* norm;
  float epsilon;

  int64_t keys() const { return int64_t{key_heads} * key_dim; }
  int64_t values() const { return int64_t{value_heads} * value_dim; }
  // Queries, keys and values.
  int64_t channels() const { return 2 * keys() + values(); }
};

// What a layer keeps of each slot.
struct DeltaStates {
  // [slots][taps - 1][channels]: the last inputs of the convolution, the oldest first.
  float* tail;
  // [slots][value heads][key dim][value dim]
  float* matrix;
};

// The rows of a step, sequence by sequence.
struct SequenceRows {
  int64_t sequences;
  const int64_t* slot;
  // How many rows a sequence and those before it have.
  const int64_t* end;
  // Numbers of rows, each sequence's in the order of its positions.
  const int64_t* row;

  int64_t begin(int64_t sequence) const { return sequence == 0 ? 0 : end[sequence - 1]; }
  int64_t count() const { return sequences == 0 ? 0 : end[sequences - 1]; }
};

// Of each row: queries, keys, values and the output's gate, [channels + values]; and beta, then step
// of each value head before activation, in blocks of kPositions.
struct DeltaInput {
  const float* projected;
  int64_t projected_stride;
  const float* gates;
  int64_t gates_stride;  // from one row to the next
  int64_t block_stride;  // from one block to the next

  float gate(int64_t row, int number) const {
    return gates[number / kPositions * block_stride + row * gates_stride + number % kPositions];
  }
};

Scratch delta_scratch(const DeltaMixer& mixer, InstructionSet set);

// out[row * out_stride + c] for the rows named in `rows`, c < values. States move on by all rows.
// A row's result and the state after it depend on the row and the state before it alone. Another
// operation may follow after a barrier.
void mix_delta(Team& team, const DeltaMixer& mixer, const DeltaStates& states,
               const SequenceRows& rows, const DeltaInput& input, InstructionSet set,
               uint8_t* shared, uint8_t* own, float* out, int64_t out_stride);

}  // namespace mixtura
