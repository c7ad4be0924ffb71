// Routers whose gate is one matrix: see src/mixtura/moe/routers, the twins in Python.
#pragma once

#include <cstdint>

#include "attention/kernels.h"
#include "machine/pool.h"

namespace mixtura {

// What logits become before experts are ranked, and what the chosen ones' weights are made of.
enum class Score : int { logit, softmax, sigmoid };

// What becomes of the chosen scores.
enum class Weigh : int {
  score,       // as they are
  softmax,     // softmax of the chosen logits
  share,       // over their sum
  norm,        // softmax of the chosen logits over its norm of order `norm`
};

struct Gate {
  Vectors weight;             // [experts, width], fp32 or bf16
  const float* bias;          // added to logits, or null
  const float* choosing;      // added to what ranks, or null
  int num_experts;
  int top_k;
  Score score;
  Weigh weigh;
  float norm;
  float scale;                // of the weights, at the end
  int groups, groups_kept, group_top;  // of experts; one group: no such limit

  int64_t blocks() const { return (num_experts + kPositions - 1) / kPositions; }
};

// logits[block][row][kPositions], as `scores` of attention gives them; x has `stride` floats a row.
// Pieces are claimed from the counter.
void gate_logits(Team& team, const AttentionKernels& kernels, const Gate& gate, const float* x,
                 int64_t stride, int64_t rows, float* logits);

// The first `chosen` experts of a row, top_k at most, and their weights, as a gate of so many gives
// them; the rest of top_k are none, and weigh 0. `scratch` holds 4 num_experts floats.
void choose(const Gate& gate, int chosen, const float* logits, int64_t row, int64_t rows,
            float* scratch, int64_t* expert, float* weight);

}  // namespace mixtura
