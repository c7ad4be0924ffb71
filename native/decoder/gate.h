// Routing with a gate of one linear layer. The reference is src/mixtura/moe/routers.
#pragma once

#include <cstdint>

#include "attention/kernels.h"
#include "machine/pool.h"

namespace mixtura {

// The function that turns an expert's logit into its score. Experts are ranked by score.
enum class Score : int { logit, softmax, sigmoid };

// How the weights of a row's chosen experts are computed.
enum class Weigh : int {
  score,       // the score
  softmax,     // softmax over the chosen experts' logits
  share,       // the score divided by the sum of the chosen scores
  norm,        // softmax over the chosen experts' logits, divided by its norm of order Gate::norm
};

struct Gate {
  Vectors weight;             // [experts, width], fp32 or bf16
  const float* bias;          // added to logits, or null
  const float* choosing;      // added to scores for ranking, but not for weights; or null
  int num_experts;
  int top_k;
  Score score;
  Weigh weigh;
  float norm;
  float scale;                // factor of the weights
  // Experts are chosen only from the `groups_kept` best of `groups` groups. A group's rank is the
  // sum of its `group_top` largest scores; groups = 1: no such limit.
  int groups, groups_kept, group_top;

  // Blocks of kPositions experts, the unit in which `gate_logits` stores logits.
  int64_t blocks() const { return (num_experts + kPositions - 1) / kPositions; }
};

// Writes logits[block][row][kPositions], with expert e in block e / kPositions, since the kernel
// AttentionKernels::scores has this layout. A row of x is `stride` floats long. All threads of a
// team call it, and claim work from the team's next counter.
void gate_logits(Team& team, const AttentionKernels& kernels, const Vectors& weight, int experts,
                 const float* x, int64_t stride, int64_t rows, float* logits);

// Writes the best `chosen` experts of a row, at most top_k, and their weights, normalised over
// these experts alone. Entries from `chosen` to top_k get expert num_experts, which means none, and
// weight 0. `scratch` has room for 4 * num_experts floats.
void choose(const Gate& gate, int chosen, const float* logits, int64_t row, int64_t rows,
            float* scratch, int64_t* expert, float* weight);

}  // namespace mixtura
