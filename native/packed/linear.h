// y = W x + b with packed weights W, for any number of rows x.
#pragma once

#include "machine/cpu.h"
#include "packed/format.h"
#include "packed/products.h"
#include "packed/rows.h"

namespace mixtura {

struct Linear {
  Matrix matrix;
  const float* bias;  // of `outputs`, or null
};

Scratch linear_scratch(const Linear& linear, int64_t rows, Phase phase, InstructionSet set);

// Computes out[row * out_stride + channel] from x[row * x_stride + input]. All threads of a team
// call it. It has a barrier inside, but none at its end.
void linear(Team& team, const Linear& linear, const float* x, int64_t x_stride, int64_t rows,
            Phase phase, InstructionSet set, uint8_t* shared, uint8_t* own, float* out,
            int64_t out_stride);

}  // namespace mixtura
