// The next tokens of rows of logits.
#pragma once

#include <cstdint>

#include "machine/pool.h"

namespace mixtura {

// Of `rows` rows of fp32 logits those at `number[i] * vocabulary`.
struct Draws {
  const float* logits;
  int64_t vocabulary;
  const int64_t* number;
  int64_t rows;
  const double* temperature;  // above 0
  const double* uniform;      // in [0, 1)
};

Scratch draw_scratch(const Draws& draws);

// token[i], drawn in proportion to exp(logit / temperature); -1 where a row has NaN, +inf, or nothing
// but -inf. Sums in blocks of one size, so that no count of threads changes a token.
void draw(Team& team, const Draws& draws, uint8_t* shared, int64_t* token);

}  // namespace mixtura
