// The experts of an MoE layer: the product with w_in, the activation, the product with w_out, and
// the weighted sum over a token's experts. E experts, D model width, F expert width.
#pragma once

#include "packed/linear.h"

namespace mixtura {

struct Experts {
  // [E] addresses of the experts' weights: the tiles of w_in, then those of w_out. Null if an
  // expert is not in memory; then no row may choose it.
  const uint8_t* const* tiles;
  int64_t num_experts;
  int width;               // D
  int expert_width;        // F
  int bits;
  Activation activation;
  const float* bias_in;    // [E, padded rows of w_in] in the order of w_in's tiles, or null
  const float* bias_out;   // [E, D], or null

  int padded_width() const { return static_cast<int>(round_up(expert_width, kTile)); }
  int rows_in() const { return is_gated(activation) ? 2 * padded_width() : expert_width; }
  // The shapes of w_in and w_out, without weights.
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

// The router's choices: for each row its token, its expert and its weight. Expert num_experts means
// none.
struct Routed {
  const int64_t* token;
  const int64_t* expert;
  const float* weight;
  int64_t rows;
  int64_t tokens;
};

Scratch experts_scratch(const Experts& experts, int64_t rows, int64_t tokens, Phase phase,
                        InstructionSet set);

// y[token] = sum over the token's rows, by ascending expert, of weight * expert(x[token]), with x
// and y [tokens, D]. All threads of a team call it. It has barriers inside, but none at its end.
void experts(Team& team, const Experts& experts, const float* x, const Routed& routed, Phase phase,
             InstructionSet set, uint8_t* shared, uint8_t* own, float* y);

}  // namespace mixtura
