// Mamba-2 in a step: see mixers.h.
#include <algorithm>

#include "decoder/step.h"

namespace mixtura {

void Step::mix(Team& team, const Mamba2& block) {
  const int64_t row_width = block.row_width(), inner = block.mixer.inner();
  float* steps = projected_ + rows_ * row_width;
  multiply(team, block.projection, normed_, width(), projected_, row_width);
  team.barrier();
  gate_logits(team, kernels_, block.steps, block.mixer.heads, normed_, width(), rows_, steps);
  team.barrier();
  const SequenceRows rows{static_cast<int64_t>(program_.sequence_slot_.size()),
                          program_.sequence_slot_.data(), program_.sequence_end_.data(),
                          program_.sequence_row_.data()};
  const MambaInput input{projected_, row_width, steps, kPositions, rows_ * kPositions};
  mix_mamba(team, block.mixer, block.states, rows, input, set_, stage_, stage_own_, q_, inner);
  leave_others(team);
  const float* mixed = q_;
  if (some_) {
    each(team, rows_, [&](int64_t i) {
      std::copy_n(q_ + given_.asked[i] * inner, inner, attended_ + i * inner);
    });
    mixed = attended_;
  }
  multiply(team, block.out, mixed, inner, branch_, width());
}

}  // namespace mixtura
