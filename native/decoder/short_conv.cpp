// The gated short convolution in a step: see mixers.h. Its twin is
// src/mixtura/kernels/short_conv/naive.py.
#include <algorithm>

#include "decoder/step.h"

namespace mixtura {

void Step::mix(Team& team, const ShortConv& block) {
  multiply(team, block.projection, normed_, width(), projected_, block.projected_width());
  team.barrier();
  convolve(team, block);
  leave_others(team);
  const float* mixed = q_;
  if (some_) {
    each(team, rows_, [&](int64_t i) {
      std::copy_n(q_ + given_.asked[i] * width(), width(), attended_ + i * width());
    });
    mixed = attended_;
  }
  multiply(team, block.out, mixed, width(), branch_, width());
}

// Writes c * conv(b * v) of all rows to q_, and moves the states on. The rows of a slot come in the
// order of their positions, and each thread has a range of channels, so no row waits for another.
// Products and sums are rounded one by one, the oldest token first, as in the twin.
void Step::convolve(const Team& team, const ShortConv& block) {
  const int64_t wide = width();
  const int64_t begin = wide * team.thread / team.threads;
  const int64_t end = wide * (team.thread + 1) / team.threads;
  const int past = block.kernel - 1;
  for (int64_t i = 0; i < given_.rows.count; ++i) {
    const float* before = projected_ + i * block.projected_width();
    const float* gate = before + wide;
    const float* value = gate + wide;
    float* state = block.state_of(given_.rows.slot[i]);
    float* out = q_ + i * wide;
    for (int64_t c = begin; c < end; ++c) {
      const float newest = before[c] * value[c];
      float sum = state[c] * block.weight[c];
      for (int tap = 1; tap < past; ++tap) {
        sum += state[tap * wide + c] * block.weight[tap * wide + c];
        state[(tap - 1) * wide + c] = state[tap * wide + c];
      }
      state[(past - 1) * wide + c] = newest;
      sum += newest * block.weight[past * wide + c];
      if (block.bias != nullptr) sum += block.bias[c];
      out[c] = gate[c] * sum;
    }
  }
}

}  // namespace mixtura
