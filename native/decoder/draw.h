// Sampling of next tokens from logit rows.
#pragma once

#include <cstdint>

#include "machine/pool.h"

namespace mixtura {

// A batch of `rows` tokens to sample. Token i is sampled from row number[i] of the fp32 logits.
struct Draws {
  const float* logits;
  int64_t vocabulary;
  const int64_t* number;
  int64_t rows;
  const double* temperature;  // above 0
  const double* uniform;      // random numbers in [0, 1)
};

Scratch draw_scratch(const Draws& draws);

// Samples token[i] with probability proportional to exp(logit / temperature). token[i] is -1 if the
// row has NaN or +inf, or if all its logits are -inf. The result does not depend on the number of
// threads, since sums are taken over blocks of a fixed size.
void draw(Team& team, const Draws& draws, uint8_t* shared, int64_t* token);

}  // namespace mixtura
