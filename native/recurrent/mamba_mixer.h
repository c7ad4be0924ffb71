// The mixer of Mamba-2 between its projections, for rows of any mix of sequences.
#pragma once

#include <cstdint>

#include "attention/kernels.h"
#include "machine/cpu.h"
#include "machine/pool.h"
#include "recurrent/delta_mixer.h"

namespace mixtura {

struct MambaMixer {
  int heads;
  int head_dim;
  int state_dim;
  int groups;
  int taps;
  // [taps][channels]
  const float* conv;
  const float* conv_bias;
  // Of each head: a step of length 1 leaves e^-rate of the state.
  const float* rate;
  const float* step_bias;
  const float* skip;
  // [inner]
  const float* norm;
  float epsilon;
  // Bounds of a step, after softplus.
  float least_step;
  float most_step;

  // The numbers of a row's input; its gate has as many.
  int64_t inner() const { return int64_t{heads} * head_dim; }
  int64_t keys() const { return int64_t{groups} * state_dim; }
  // Inputs, b and c.
  int64_t channels() const { return inner() + 2 * keys(); }
};

// What a layer keeps of each slot.
struct MambaStates {
  // [slots][taps - 1][channels]: the last inputs of the convolution, the oldest first.
  float* tail;
  // [slots][heads][state dim][head dim]
  float* matrix;
};

// Of each row: the output's gate, inputs, b and c, [inner + channels]; and the step of each head
// before bias and softplus, in blocks of kPositions.
struct MambaInput {
  const float* projected;
  int64_t projected_stride;
  const float* steps;
  int64_t steps_stride;  // from one row to the next
  int64_t block_stride;  // from one block to the next

  float step(int64_t row, int head) const {
    return steps[head / kPositions * block_stride + row * steps_stride + head % kPositions];
  }
};

Scratch mamba_scratch(const MambaMixer& mixer, InstructionSet set);

// out[row * out_stride + c] for the rows named in `rows`, c < inner. States move on by all rows. A
// row's result and the state after it depend on the row and the state before it alone. Another
// operation may follow after a barrier.
void mix_mamba(Team& team, const MambaMixer& mixer, const MambaStates& states,
               const SequenceRows& rows, const MambaInput& input, InstructionSet set,
               uint8_t* shared, uint8_t* own, float* out, int64_t out_stride);

}  // namespace mixtura
