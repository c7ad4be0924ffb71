#include "decoder/gate.h"

#include <algorithm>
#include <cmath>

namespace mixtura {
namespace {

constexpr float kNothing = -__builtin_inff();
constexpr int kExpertsAtOnce = 16;
constexpr int64_t kRowsAtOnce = 64;

// Softmax in place.
void softmax(float* x, int count) {
  const float largest = *std::max_element(x, x + count);
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += x[i] = std::exp(x[i] - largest);
  for (int i = 0; i < count; ++i) x[i] /= sum;
}

// Returns the index of the largest number, the first if several are equal.
int best(const float* x, int count) {
  return static_cast<int>(std::max_element(x, x + count) - x);
}

// Sets the scores of all experts outside the best groups to -inf. `spare` has room for the scores
// of one group's experts and, after them, a score for each group.
void keep_best_groups(const Gate& gate, float* ranking, float* spare) {
  const int size = gate.num_experts / gate.groups;
  float* group_score = spare + size;
  for (int group = 0; group < gate.groups; ++group) {
    std::copy(ranking + group * size, ranking + (group + 1) * size, spare);
    group_score[group] = 0.0f;
    for (int taken = 0; taken < gate.group_top; ++taken) {
      float& largest = spare[best(spare, size)];
      group_score[group] += largest;
      largest = kNothing;
    }
  }
  for (int kept = 0; kept < gate.groups_kept; ++kept) {
    group_score[best(group_score, gate.groups)] = kNothing;
  }
  for (int group = 0; group < gate.groups; ++group) {
    if (group_score[group] == kNothing) continue;
    std::fill(ranking + group * size, ranking + (group + 1) * size, kNothing);
  }
}

void weigh_chosen(const Gate& gate, int chosen, float* weight) {
  switch (gate.weigh) {
    case Weigh::score:
      break;
    case Weigh::softmax:
      softmax(weight, chosen);
      break;
    case Weigh::share: {
      float sum = 0.0f;
      for (int i = 0; i < chosen; ++i) sum += weight[i];
      for (int i = 0; i < chosen; ++i) weight[i] /= sum + 1e-20f;
      break;
    }
    case Weigh::norm: {
      softmax(weight, chosen);
      float sum = 0.0f;
      for (int i = 0; i < chosen; ++i) sum += std::pow(weight[i], gate.norm);
      const float size = std::pow(sum, 1.0f / gate.norm);
      for (int i = 0; i < chosen; ++i) weight[i] /= size;
      break;
    }
  }
  for (int i = 0; i < chosen; ++i) weight[i] *= gate.scale;
}

}  // namespace

void gate_logits(Team& team, const AttentionKernels& kernels, const Vectors& weight, int experts,
                 const float* x, int64_t stride, int64_t rows, float* logits) {
  auto& counter = team.counter();
  const int64_t runs = (experts + kExpertsAtOnce - 1) / kExpertsAtOnce;
  const int64_t parts = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  for (;;) {
    const int64_t next = counter.fetch_add(1, std::memory_order_relaxed);
    if (next >= runs * parts) return;
    const int first = static_cast<int>(next % runs) * kExpertsAtOnce;
    const int64_t row = next / runs * kRowsAtOnce;
    const int count = std::min(kExpertsAtOnce, experts - first);
    Vectors some = weight;
    some.at = static_cast<const uint8_t*>(weight.at) +
              first * weight.stride * kept_bytes(weight.kept);
    float* out = logits + (first / kPositions * rows + row) * kPositions + first % kPositions;
    kernels.scores(some, count, x + row * stride, stride,
                   static_cast<int>(std::min(rows - row, kRowsAtOnce)), out,
                   static_cast<const uint8_t*>(some.at));
  }
}

void choose(const Gate& gate, int chosen, const float* logits, int64_t row, int64_t rows,
            float* scratch, int64_t* expert, float* weight) {
  const int count = gate.num_experts;
  float* score = scratch;
  float* ranking = scratch + count;
  for (int i = 0; i < count; ++i) {
    score[i] = logits[(i / kPositions * rows + row) * kPositions + i % kPositions];
    if (gate.bias != nullptr) score[i] += gate.bias[i];
  }
  // These weights are a softmax over logits, even if experts are ranked by other scores.
  const bool of_logits = gate.weigh == Weigh::softmax || gate.weigh == Weigh::norm;
  std::copy(score, score + count, ranking);
  if (gate.score == Score::softmax) softmax(ranking, count);
  if (gate.score == Score::sigmoid) {
    for (int i = 0; i < count; ++i) ranking[i] = 1.0f / (1.0f + std::exp(-ranking[i]));
  }
  if (!of_logits) std::copy(ranking, ranking + count, score);
  if (gate.choosing != nullptr) {
    for (int i = 0; i < count; ++i) ranking[i] += gate.choosing[i];
  }
  if (gate.groups > 1) keep_best_groups(gate, ranking, ranking + count);
  for (int i = 0; i < chosen; ++i) {
    const int largest = best(ranking, count);
    expert[i] = largest;
    weight[i] = score[largest];
    ranking[largest] = kNothing;
  }
  weigh_chosen(gate, chosen, weight);
  std::fill(expert + chosen, expert + gate.top_k, int64_t{count});
  std::fill(weight + chosen, weight + gate.top_k, 0.0f);
}

}  // namespace mixtura
