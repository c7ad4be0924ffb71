// The routed experts of a layer: both products, the activation between them, and the weighted sum.
#pragma once

#include "packed/linear.h"

namespace mixtura {

struct Experts {
  // [E] where each expert's bytes lie: the tiles of w_in, then those of w_out. Null: not here, and
  // no row may choose it.
  const uint8_t* const* tiles;
  int64_t num_experts;
  int width;               // D
  int expert_width;        // F
  int bits;
  Activation activation;
  const float* bias_in;    // [E, padded rows of w_in] in the order of its tiles, or null
  const float* bias_out;   // [E, D], or null

  int padded_width() const { return static_cast<int>(round_up(expert_width, kTile)); }
  int rows_in() const { return is_gated(activation) ? 2 * padded_width() : expert_width; }
  // The shapes of both matrices, which all experts share.
  Matrix in() const {
    return {nullptr, static_cast<int>(round_up(rows_in(), kUnit)), width, bits};
  }
  Matrix out() const { return {nullptr, width, expert_width, bits}; }
  Matrix in(int64_t expert) const {
    Matrix matrix = in();
    matrix.tiles = tiles[expert];
    return matrix;
  }
  Matrix out(int64_t expert) const {
    const Matrix first = in(expert);
    Matrix matrix = out();
    matrix.tiles = first.tiles + first.units() * first.unit_bytes();
    return matrix;
  }
};

// Rows as a router gives them: row -> token, expert (num_experts: none) and weight.
struct Routed {
  const int64_t* token;
  const int64_t* expert;
  const float* weight;
  int64_t rows;
  int64_t tokens;
};

Scratch experts_scratch(const Experts& experts, int64_t rows, int64_t tokens, Phase phase,
                        InstructionSet set);

// y[token * D + i] = the sum over the token's rows, by ascending expert, of weight * expert(x).
// All threads of a team call it; there are barriers within, and none at its end.
void experts(Team& team, const Experts& experts, const float* x, const Routed& routed, Phase phase,
             InstructionSet set, uint8_t* shared, uint8_t* own, float* y);

}  // namespace mixtura
