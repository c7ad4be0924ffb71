// Gated DeltaNet in a step: see mixers.h.
#include <algorithm>

#include "decoder/step.h"

namespace mixtura {

void Step::mix(Team& team, const GatedDelta& block) {
  const int64_t row_width = block.row_width(), values = block.mixer.values();
  float* gates = projected_ + rows_ * row_width;
  multiply(team, block.projection, normed_, width(), projected_, row_width);
  team.barrier();
  gate_logits(team, kernels_, block.gates, block.num_gates(), normed_, width(), rows_, gates);
  team.barrier();
  const SequenceRows rows{static_cast<int64_t>(program_.sequence_slot_.size()),
                          program_.sequence_slot_.data(), program_.sequence_end_.data(),
                          program_.sequence_row_.data()};
  const DeltaInput input{projected_, row_width, gates, kPositions, rows_ * kPositions};
  mix_delta(team, block.mixer, block.states, rows, input, set_, stage_, stage_own_, q_, values);
  leave_others(team);
  const float* mixed = q_;
  if (some_) {
    each(team, rows_, [&](int64_t i) {
      std::copy_n(q_ + given_.asked[i] * values, values, attended_ + i * values);
    });
    mixed = attended_;
  }
  multiply(team, block.out, mixed, values, branch_, width());
}

}  // namespace mixtura
