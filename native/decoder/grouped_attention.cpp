// Grouped-query attention in a step: see mixers.h.
#include <algorithm>
#include <cmath>

#include "decoder/step.h"

namespace mixtura {

void Step::mix(Team& team, const GroupedAttention& block) {
  multiply(team, block.qkv, normed_, width(), projected_, block.projected_width());
  team.barrier();
  if (block.gated) {
    multiply(team, block.output_gate, normed_, width(), projected_ + block.gate_start(),
             block.projected_width());
    team.barrier();
  }
  keep_rows(team, block);
  rotate_queries(team, block);
  attend_rows(team, block.over);
  if (block.gated) scale_outputs(team, block);
  multiply(team, block.over.out, attended_, block.over.mixed_width(), branch_, width());
}

void Step::attend_rows(Team& team, const CachedHeads& over) {
  leave_others(team);
  const Program::Plans& plans = *program_.plans_of(over);
  const Queries queries{q_,          over.query_width(), over.heads, over.scale,
                        over.window, over.sinks,         attended_};
  attend(team, some_ ? plans.asked : plans.all, over.cache, some_ ? asked_ : given_.rows, queries,
         set_, stage_, stage_own_);
  team.barrier();
}

namespace {

// The RMSNorm factor over all heads of a row. A thread computes it once for consecutive heads of
// the same row; without norm_of_all the factor is 1.
class SizeOfAll {
 public:
  SizeOfAll(const GroupedAttention& block, const Norm& norm, int64_t width)
      : needed_(block.norm_of_all), epsilon_(norm.epsilon), width_(width) {}

  float factor(int64_t row, const float* all) {
    if (needed_ && row != row_) {
      const float square = sum_of_squares(all, width_) / static_cast<float>(width_);
      factor_ = 1.0f / std::sqrt(square + epsilon_);
      row_ = row;
    }
    return factor_;
  }

 private:
  const bool needed_;
  const float epsilon_;
  const int64_t width_;
  int64_t row_ = -1;
  float factor_ = 1.0f;
};

}  // namespace

// Writes the queries after RoPE to q_, of the rows that go on.
void Step::rotate_queries(const Team& team, const GroupedAttention& block) {
  const CachedHeads& over = block.over;
  SizeOfAll size(block, block.q_norm, over.query_width());
  each(team, going_on() * over.heads, [&](int64_t i) {
    const int64_t number = i / over.heads, offset = i % over.heads * over.key_dim();
    const int64_t from = source(number);
    const float* q = projected_ + from * block.projected_width();
    rotate_head(block, block.q_norm, q, offset, size.factor(from, q), given_.angle[from],
                q_ + number * over.query_width() + offset);
  });
}

void Step::keep_rows(const Team& team, const GroupedAttention& block) {
  const LayerCache& cache = block.over.cache;
  const int kv_heads = cache.kv_heads, dim = block.over.key_dim();
  SizeOfAll size(block, block.k_norm, block.key_width());
  each(team, rows_ * kv_heads, [&](int64_t i) {
    const int64_t number = i / kv_heads, offset = i % kv_heads * dim;
    const int head = static_cast<int>(i % kv_heads);
    const int64_t place = cache.place(given_.rows.slot[number], head, given_.rows.position[number]);
    const float* k = projected_ + number * block.projected_width() + block.over.query_width();
    rotate_head(block, block.k_norm, k, offset, size.factor(number, k), given_.angle[number],
                own_);
    keep_vector(kernels_, cache, true, place, own_);
    std::copy_n(k + block.key_width() + offset, dim, own_);
    if (block.clip > 0.0f) clip(own_, dim, block.clip);
    keep_vector(kernels_, cache, false, place, own_);
  });
}

// Scales what the heads of the rows that go on give by the sigmoid of the row's gate.
void Step::scale_outputs(const Team& team, const GroupedAttention& block) {
  const int64_t wide = block.over.mixed_width();
  each(team, rows_, [&](int64_t i) {
    const float* gate = projected_ + source(i) * block.projected_width() + block.gate_start();
    float* mixed = attended_ + i * wide;
    for (int64_t c = 0; c < wide; ++c) mixed[c] *= 1.0f / (1.0f + std::exp(-gate[c]));
  });
}

// Normalises, clips and rotates the head at all + offset, and writes it to `out`.
void Step::rotate_head(const GroupedAttention& block, const Norm& norm, const float* all,
                       int64_t offset, float factor, int64_t angle, float* out) const {
  const int dim = block.over.key_dim();
  if (block.norm_of_all) {
    for (int c = 0; c < dim; ++c) out[c] = all[offset + c] * factor * norm.weight[offset + c];
  } else {
    norm.apply(all + offset, dim, out);
  }
  if (block.clip > 0.0f) clip(out, dim, block.clip);
  rotate(out, block.over.cosines_at(angle), block.over.sines_at(angle), block.over.rope_dim / 2);
}

}  // namespace mixtura
