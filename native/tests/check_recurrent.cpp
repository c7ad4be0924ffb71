// Recurrent mixers in every instruction set against the plain one, on memory of exactly the size
// that they may touch, for the sanitizers: see check_kernels.cpp.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "recurrent/delta_mixer.h"

namespace mixtura {
namespace {

constexpr InstructionSet kSets[] = {InstructionSet::avx2, InstructionSet::avx512};

int failures = 0;
std::mt19937 random_bits(7);

std::vector<float> floats(int64_t count) {
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> made(count);
  for (float& one : made) one = uniform(random_bits);
  return made;
}

void expect_near(const std::vector<float>& found, const std::vector<float>& expected, float bound,
                 const char* what, int64_t rows) {
  float worst = 0.0f, largest = 1e-9f;
  for (size_t i = 0; i < expected.size(); ++i) {
    // What is not a number is not within any bound.
    if (!(std::fabs(found[i] - expected[i]) <= worst)) worst = std::fabs(found[i] - expected[i]);
    largest = std::fmax(largest, std::fabs(expected[i]));
  }
  if (worst <= bound * largest) return;
  std::printf("%s, %d rows: off by %g of %g\n", what, static_cast<int>(rows), worst, largest);
  ++failures;
}

struct Sizes {
  int key_heads, value_heads, key_dim, value_dim, taps;
};

// A mixer, its inputs for some rows of three sequences, and the states of four slots.
struct Case {
  static constexpr int64_t kSlots = 4, kSequences = 3;

  DeltaMixer mixer;
  std::vector<float> conv, rate, step_bias, norm, projected, gates, tail, matrix;
  std::vector<int64_t> slot{3, 0, 2}, end, row;
  int64_t rows;

  Case(const Sizes& sizes, int64_t rows) : rows(rows) {
    mixer = {sizes.key_heads, sizes.value_heads, sizes.key_dim, sizes.value_dim, sizes.taps,
             nullptr,         nullptr,           nullptr,       nullptr,         1e-6f};
    conv = floats(sizes.taps * mixer.channels());
    rate = floats(sizes.value_heads);
    for (float& one : rate) one = std::exp(one);
    step_bias = floats(sizes.value_heads);
    norm = floats(sizes.value_dim);
    mixer.conv = conv.data();
    mixer.rate = rate.data();
    mixer.step_bias = step_bias.data();
    mixer.norm = norm.data();
    projected = floats(rows * (mixer.channels() + mixer.values()));
    gates = floats(rows * 2 * sizes.value_heads);
    tail = floats(kSlots * (sizes.taps - 1) * mixer.channels());
    matrix = floats(kSlots * sizes.value_heads * sizes.key_dim * sizes.value_dim);
    for (int64_t sequence = 0; sequence < kSequences; ++sequence) {
      for (int64_t i = sequence; i < rows; i += kSequences) row.push_back(i);
      end.push_back(static_cast<int64_t>(row.size()));
    }
  }

  // The outputs, and behind them the states that are left.
  std::vector<float> run(InstructionSet set) const {
    std::vector<float> out(rows * mixer.values(), NAN), tails = tail, matrices = matrix;
    const DeltaStates states{tails.data(), matrices.data()};
    const SequenceRows given{kSequences, slot.data(), end.data(), row.data()};
    const DeltaInput input{projected.data(), mixer.channels() + mixer.values(), gates.data(),
                           int64_t{2} * mixer.value_heads, kPositions};
    const Scratch scratch = delta_scratch(mixer, set);
    Workspace workspace;
    Pool& pool = Pool::shared();
    workspace.reserve(scratch.shared, scratch.own, pool.threads());
    pool.run([&](Team& team) {
      mix_delta(team, mixer, states, given, input, set, workspace.shared(),
                workspace.own(team.thread), out.data(), mixer.values());
    });
    out.insert(out.end(), tails.begin(), tails.end());
    out.insert(out.end(), matrices.begin(), matrices.end());
    return out;
  }
};

void check_delta_mixer() {
  const Sizes all[] = {{1, 1, 1, 1, 2}, {1, 3, 7, 33, 5}, {2, 4, 16, 20, 4}, {2, 2, 33, 48, 16}};
  for (const Sizes& sizes : all) {
    for (int64_t rows : {0, 1, 2, 7, 70}) {
      const Case one(sizes, rows);
      const auto plain = one.run(InstructionSet::plain);
      for (InstructionSet set : kSets) {
        if (has(set)) expect_near(one.run(set), plain, 1e-4f, "delta mixer", rows);
      }
    }
  }
}

}  // namespace
}  // namespace mixtura

int main() {
  using namespace mixtura;
  // More threads than work, and one alone.
  for (int threads : {1, 2, 5}) {
    Pool::shared().set_threads(threads);
    check_delta_mixer();
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
