// Its twin is src/mixtura/kernels/mamba2/naive.py.
#include "recurrent/mamba_mixer.h"

#include <algorithm>
#include <cmath>

#include "packed/rows.h"
#include "recurrent/mamba_kernels.h"

namespace mixtura {
namespace {

// Rows are convolved and computed in blocks, so that what is convolved stays in the caches.
constexpr int64_t kRowsAtOnce = 32;
// Channels of a row that one thread convolves at once.
constexpr int64_t kChannelsAtOnce = 512;

const MambaKernels& mamba_kernels(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx2) return avx2_mamba();
  if (set != InstructionSet::plain) return avx512_mamba();
#endif
  (void)set;
  return plain_mamba();
}

// log(1 + e^x)
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

class Mixing {
 public:
  Mixing(const MambaMixer& mixer, const MambaStates& states, const SequenceRows& rows,
         const MambaInput& input, InstructionSet set, float* mixed, float* out, int64_t out_stride)
      : mixer_(mixer), states_(states), rows_(rows), input_(input), kernels_(mamba_kernels(set)),
        mixed_(mixed), out_(out), out_stride_(out_stride) {}

  // The number of the sequence that has the n-th of all rows.
  int64_t sequence_of(int64_t n) const {
    return std::upper_bound(rows_.end, rows_.end + rows_.sequences, n) - rows_.end;
  }

  int64_t parts() const { return (mixer_.channels() + kChannelsAtOnce - 1) / kChannelsAtOnce; }

  // A part of the channels of row n, to place `at` of the block.
  void convolve(int64_t n, int64_t at, int64_t part) const {
    const int64_t first = part * kChannelsAtOnce, channels = mixer_.channels();
    const int64_t sequence = sequence_of(n), begin = rows_.begin(sequence);
    const int64_t past = mixer_.taps - 1;
    const float* inputs[kTapsMost];
    for (int64_t tap = 0; tap <= past; ++tap) {
      const int64_t from = n - past + tap;
      inputs[tap] = first + (from >= begin ? input(from) : tail(sequence, from - begin + past));
    }
    const auto dim = static_cast<int>(std::min(kChannelsAtOnce, channels - first));
    kernels_.convolve(inputs, mixer_.taps, mixer_.conv + first, channels,
                      mixer_.conv_bias + first, dim, mixed_ + at * channels + first);
  }

  // One head of rows first..end-1 of all, which are of one sequence; row `block` is the first that
  // was convolved.
  void advance(int64_t sequence, int64_t block, int64_t first, int64_t end, int head,
               float* tile) const {
    const int head_dim = mixer_.head_dim, state_dim = mixer_.state_dim;
    float step[kRowsAtOnce], decay[kRowsAtOnce];
    for (int64_t n = first; n < end; ++n) {
      const float wide = softplus(input_.step(rows_.row[n], head) + mixer_.step_bias[head]);
      step[n - first] = std::min(std::max(wide, mixer_.least_step), mixer_.most_step);
      decay[n - first] = std::exp(-mixer_.rate[head] * step[n - first]);
    }
    const int64_t channels = mixer_.channels(), offset = int64_t{head} * head_dim;
    const int group = head / (mixer_.heads / mixer_.groups);
    const float* mixed = mixed_ + (first - block) * channels;
    const float* b = mixed + mixer_.inner() + int64_t{group} * state_dim;
    MambaSteps steps{static_cast<int>(end - first), state_dim, channels, mixed + offset, b,
                     b + mixer_.keys(), step, decay, mixer_.skip[head], out_ + offset,
                     rows_.row + first, out_stride_};
    float* matrix = states_.matrix + (rows_.slot[sequence] * mixer_.heads + head) * state_dim *
                                         int64_t{head_dim};
    for (int column = 0; column < head_dim; column += kernels_.columns) {
      const int width = std::min(head_dim - column, kernels_.columns);
      kernels_.advance(steps, matrix + column, head_dim, width, tile);
      steps.x += kernels_.columns;
      steps.out += kernels_.columns;
    }
  }

  // The gated norm of one group of row n.
  void norm(int64_t n, int group) const {
    const int64_t dim = mixer_.inner() / mixer_.groups, first = group * dim;
    kernels_.gated_norm(out_ + rows_.row[n] * out_stride_ + first, projected(n) + first,
                        mixer_.norm + first, static_cast<int>(dim), mixer_.epsilon);
  }

  // The last inputs of a sequence's convolution.
  void keep_tail(int64_t sequence) const {
    const int64_t past = mixer_.taps - 1;
    const int64_t end = rows_.end[sequence], count = end - rows_.begin(sequence);
    for (int64_t i = 0; count > 0 && i < past; ++i) {
      // What is read lies behind what is written.
      const float* from = i + count < past ? tail(sequence, i + count) : input(end - past + i);
      std::copy(from, from + mixer_.channels(), tail(sequence, i));
    }
  }

 private:
  const float* projected(int64_t n) const {
    return input_.projected + rows_.row[n] * input_.projected_stride;
  }

  // What the convolution reads of row n.
  const float* input(int64_t n) const { return projected(n) + mixer_.inner(); }

  float* tail(int64_t sequence, int64_t i) const {
    return states_.tail + (rows_.slot[sequence] * (mixer_.taps - 1) + i) * mixer_.channels();
  }

  const MambaMixer& mixer_;
  const MambaStates& states_;
  const SequenceRows& rows_;
  const MambaInput& input_;
  const MambaKernels& kernels_;
  float* mixed_;  // what the convolution gave for a block of rows: [rows][channels]
  float* out_;
  const int64_t out_stride_;
};

// compute(i) for i < total, each by one thread.
template <class Compute>
void share(Team& team, int64_t total, const Compute& compute) {
  auto& counter = team.counter();
  for (int64_t i; (i = counter.fetch_add(1, std::memory_order_relaxed)) < total;) compute(i);
}

float* take_mixed(Carver& carver, const MambaMixer& mixer) {
  return carver.take<float>(kRowsAtOnce * mixer.channels());
}

}  // namespace

Scratch mamba_scratch(const MambaMixer& mixer, InstructionSet set) {
  Carver shared(nullptr), own(nullptr);
  take_mixed(shared, mixer);
  own.take<float>(int64_t{mixer.state_dim} * mamba_kernels(set).columns);
  return {shared.used(), own.used()};
}

void mix_mamba(Team& team, const MambaMixer& mixer, const MambaStates& states,
               const SequenceRows& rows, const MambaInput& input, InstructionSet set,
               uint8_t* shared, uint8_t* own, float* out, int64_t out_stride) {
  Carver carver(shared);
  const Mixing mixing(mixer, states, rows, input, set, take_mixed(carver, mixer), out, out_stride);
  auto* tile = reinterpret_cast<float*>(own);
  const int64_t count = rows.count(), parts = mixing.parts();
  for (int64_t block = 0; block < count; block += kRowsAtOnce) {
    const int64_t after = std::min(block + kRowsAtOnce, count);
    share(team, (after - block) * parts, [&](int64_t i) {
      mixing.convolve(block + i / parts, i / parts, i % parts);
    });
    team.barrier();
    const int64_t first = mixing.sequence_of(block);
    const int64_t sequences = mixing.sequence_of(after - 1) + 1 - first;
    share(team, sequences * mixer.heads, [&](int64_t i) {
      const int64_t sequence = first + i / mixer.heads;
      const int64_t from = std::max(block, rows.begin(sequence));
      const int64_t to = std::min(after, rows.end[sequence]);
      // A sequence may have no rows.
      if (from < to) {
        mixing.advance(sequence, block, from, to, static_cast<int>(i % mixer.heads), tile);
      }
    });
    team.barrier();
  }
  share(team, count * mixer.groups, [&](int64_t i) {
    mixing.norm(i / mixer.groups, static_cast<int>(i % mixer.groups));
  });
  for (int64_t i = team.thread; i < rows.sequences; i += team.threads) mixing.keep_tail(i);
}

}  // namespace mixtura
