#include "recurrent/delta_mixer.h"

#include <algorithm>
#include <cmath>

#include "packed/rows.h"
#include "recurrent/kernels.h"

namespace mixtura {
namespace {

// Rows are prepared and computed in blocks, so that what is prepared stays in a core's second cache.
constexpr int64_t kRowsAtOnce = 32;
// Of the length of queries and keys, before it divides them.
constexpr float kLengthEpsilon = 1e-6f;

const DeltaKernels& delta_kernels(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx2) return avx2_delta();
  if (set != InstructionSet::plain) return avx512_delta();
#endif
  (void)set;
  return plain_delta();
}

// log(1 + e^x)
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// What is prepared of a block's rows, one row after another.
struct Prepared {
  float* q;      // [key heads, padded key dim], k alike
  float* k;
  float* v;      // [value heads, padded value dim]
  float* decay;  // [value heads], beta and match alike
  float* beta;
  float* match;
  int64_t stride;  // from one row's vectors to the next's

  static Prepared in(Carver& carver, const DeltaMixer& mixer) {
    const int64_t keys = int64_t{mixer.key_heads} * padded(mixer.key_dim);
    const int64_t values = int64_t{mixer.value_heads} * padded(mixer.value_dim);
    // A tile of columns may end behind the last head's values.
    const int64_t numbers = kRowsAtOnce * (2 * keys + values) + kColumnsMost;
    Prepared made{};
    made.stride = 2 * keys + values;
    float* vectors = carver.take<float>(numbers);
    made.decay = carver.take<float>(kRowsAtOnce * mixer.value_heads);
    made.beta = carver.take<float>(kRowsAtOnce * mixer.value_heads);
    made.match = carver.take<float>(kRowsAtOnce * mixer.value_heads);
    if (vectors == nullptr) return made;
    made.q = vectors;
    made.k = vectors + keys;
    made.v = vectors + 2 * keys;
    return made;
  }
};

class Mixing {
 public:
  Mixing(const DeltaMixer& mixer, const DeltaStates& states, const SequenceRows& rows,
         const DeltaInput& input, InstructionSet set, const Prepared& prepared, float* out,
         int64_t out_stride)
      : mixer_(mixer), states_(states), rows_(rows), input_(input), kernels_(delta_kernels(set)),
        prepared_(prepared), out_(out), out_stride_(out_stride),
        copies_(mixer.value_heads / mixer.key_heads) {}

  // The number of the sequence that has the n-th of all rows.
  int64_t sequence_of(int64_t n) const {
    return std::upper_bound(rows_.end, rows_.end + rows_.sequences, n) - rows_.end;
  }

  // One key head of row n, and the value heads that it serves.
  void prepare(int64_t n, int64_t at, int key_head) const {
    const int64_t keys = mixer_.keys();
    const int key_dim = mixer_.key_dim, value_dim = mixer_.value_dim;
    const int64_t sequence = sequence_of(n);
    float* q = prepared_.q + at * prepared_.stride + int64_t{key_head} * padded(key_dim);
    float* k = prepared_.k + at * prepared_.stride + int64_t{key_head} * padded(key_dim);
    convolve(n, sequence, int64_t{key_head} * key_dim, key_dim, q);
    convolve(n, sequence, keys + int64_t{key_head} * key_dim, key_dim, k);
    const float factor = 1.0f / std::sqrt(static_cast<float>(key_dim));
    kernels_.set_length(q, key_dim, kLengthEpsilon, factor);
    kernels_.set_length(k, key_dim, kLengthEpsilon, 1.0f);
    const float match = kernels_.dot(q, k, key_dim);
    const int64_t row = rows_.row[n];
    for (int head = key_head * copies_; head < (key_head + 1) * copies_; ++head) {
      float* v = prepared_.v + at * prepared_.stride + int64_t{head} * padded(value_dim);
      convolve(n, sequence, 2 * keys + int64_t{head} * value_dim, value_dim, v);
      const float step = softplus(input_.gate(row, mixer_.value_heads + head) + mixer_.step_bias[head]);
      const int64_t place = at * mixer_.value_heads + head;
      prepared_.decay[place] = std::exp(-mixer_.rate[head] * step);
      prepared_.beta[place] = 1.0f / (1.0f + std::exp(-input_.gate(row, head)));
      prepared_.match[place] = match;
    }
  }

  // One value head of rows first..end-1 of all, which are of one sequence; row `block` is the first
  // that was prepared.
  void advance(int64_t sequence, int64_t block, int64_t first, int64_t end, int head,
               float* tile) const {
    const int key_dim = mixer_.key_dim, value_dim = mixer_.value_dim;
    const int64_t at = first - block, place = at * mixer_.value_heads + head;
    const int64_t vectors = at * prepared_.stride;
    const int64_t keys = vectors + int64_t{head / copies_} * padded(key_dim);
    float* matrix = states_.matrix + (rows_.slot[sequence] * mixer_.value_heads + head) *
                                         key_dim * int64_t{value_dim};
    float* out = out_ + int64_t{head} * value_dim;
    DeltaSteps steps{static_cast<int>(end - first), key_dim, prepared_.stride, mixer_.value_heads,
                     prepared_.q + keys, prepared_.k + keys,
                     prepared_.v + vectors + int64_t{head} * padded(value_dim),
                     prepared_.decay + place, prepared_.beta + place, prepared_.match + place,
                     out, rows_.row + first, out_stride_};
    for (int column = 0; column < value_dim; column += kernels_.columns) {
      const int width = std::min(value_dim - column, kernels_.columns);
      const int next = column + kernels_.columns;
      const float* ahead = next < value_dim ? matrix + next : matrix + int64_t{key_dim} * value_dim;
      kernels_.advance(steps, matrix + column, value_dim, width, ahead, tile);
      steps.v += kernels_.columns;
      steps.out += kernels_.columns;
    }
    for (int64_t n = first; n < end; ++n) {
      const float* gate = projected(n) + mixer_.channels() + int64_t{head} * value_dim;
      kernels_.norm(out + rows_.row[n] * out_stride_, gate, mixer_.norm, value_dim,
                    mixer_.epsilon);
    }
  }

  // The last inputs of a sequence's convolution.
  void keep_tail(int64_t sequence) const {
    const int64_t past = mixer_.taps - 1;
    const int64_t end = rows_.end[sequence], count = end - rows_.begin(sequence);
    for (int64_t i = 0; i < past; ++i) {
      // What is read lies behind what is written.
      const float* from = i + count < past ? tail(sequence, i + count) : projected(end - past + i);
      if (count > 0) std::copy(from, from + mixer_.channels(), tail(sequence, i));
    }
  }

 private:
  const float* projected(int64_t n) const {
    return input_.projected + rows_.row[n] * input_.projected_stride;
  }

  float* tail(int64_t sequence, int64_t i) const {
    return states_.tail + (rows_.slot[sequence] * (mixer_.taps - 1) + i) * mixer_.channels();
  }

  // Channels first..first+dim-1 of row n.
  void convolve(int64_t n, int64_t sequence, int64_t first, int dim, float* out) const {
    const int64_t begin = rows_.begin(sequence), past = mixer_.taps - 1;
    const float* inputs[kTapsMost];
    for (int64_t tap = 0; tap <= past; ++tap) {
      const int64_t from = n - past + tap;
      inputs[tap] = first + (from >= begin ? projected(from) : tail(sequence, from - begin + past));
    }
    kernels_.convolve(inputs, mixer_.taps, mixer_.conv + first, mixer_.channels(), dim, out);
  }

  const DeltaMixer& mixer_;
  const DeltaStates& states_;
  const SequenceRows& rows_;
  const DeltaInput& input_;
  const DeltaKernels& kernels_;
  const Prepared prepared_;
  float* out_;
  const int64_t out_stride_;
  const int copies_;  // value heads that share a key
};

// compute(i) for i < total, each by one thread.
template <class Compute>
void share(Team& team, int64_t total, const Compute& compute) {
  auto& counter = team.counter();
  for (int64_t i; (i = counter.fetch_add(1, std::memory_order_relaxed)) < total;) compute(i);
}

}  // namespace

Scratch delta_scratch(const DeltaMixer& mixer, InstructionSet set) {
  Carver shared(nullptr), own(nullptr);
  Prepared::in(shared, mixer);
  own.take<float>(int64_t{mixer.key_dim} * delta_kernels(set).columns);
  return {shared.used(), own.used()};
}

void mix_delta(Team& team, const DeltaMixer& mixer, const DeltaStates& states,
               const SequenceRows& rows, const DeltaInput& input, InstructionSet set,
               uint8_t* shared, uint8_t* own, float* out, int64_t out_stride) {
  Carver carver(shared);
  const Prepared prepared = Prepared::in(carver, mixer);
  const Mixing mixing(mixer, states, rows, input, set, prepared, out, out_stride);
  auto* tile = reinterpret_cast<float*>(own);
  const int64_t count = rows.count();
  for (int64_t block = 0; block < count; block += kRowsAtOnce) {
    const int64_t after = std::min(block + kRowsAtOnce, count);
    share(team, (after - block) * mixer.key_heads, [&](int64_t i) {
      const int64_t at = i / mixer.key_heads;
      mixing.prepare(block + at, at, static_cast<int>(i % mixer.key_heads));
    });
    team.barrier();
    const int64_t first = mixing.sequence_of(block);
    const int64_t sequences = mixing.sequence_of(after - 1) + 1 - first;
    share(team, sequences * mixer.value_heads, [&](int64_t i) {
      const int64_t sequence = first + i / mixer.value_heads;
      const int64_t from = std::max(block, rows.begin(sequence));
      const int64_t to = std::min(after, rows.end[sequence]);
      const int head = static_cast<int>(i % mixer.value_heads);
      // A sequence may have no rows.
      if (from < to) mixing.advance(sequence, block, from, to, head, tile);
    });
    team.barrier();
  }
  for (int64_t i = team.thread; i < rows.sequences; i += team.threads) mixing.keep_tail(i);
}

}  // namespace mixtura
