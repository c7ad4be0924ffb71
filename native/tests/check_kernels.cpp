// Compares the kernels of each instruction set with the plain ones. All buffers have exactly the
// size that may be accessed, so that `make sanitize` finds accesses outside. The Python tests in
// tests/kernels compare values with references.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "decoder/draw.h"
#include "limits/limits.h"
#include "packed/experts.h"
#include "packed/half.h"
#include "packed/linear.h"

namespace mixtura {
namespace {

int failures = 0;

void expect_near(const std::vector<float>& found, const std::vector<float>& expected, float bound,
                 const char* what, int rows) {
  double difference = 0, size = 1e-9;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(found[i] - expected[i], 2.0);
    size += std::pow(expected[i], 2.0);
  }
  const double error = std::sqrt(difference / size);
  if (!(error <= bound)) {
    std::printf("%s, %d rows: relative error %g\n", what, rows, error);
    ++failures;
  }
}

std::mt19937 random_bits(7);

float uniform() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(random_bits); }

std::vector<float> floats(int64_t count) {
  std::vector<float> made(count);
  for (float& one : made) one = uniform();
  return made;
}

// Random weights with scales of 1/64, which is 0x2400 in fp16.
std::vector<uint8_t> tiles_of(int outputs, int inputs, int bits) {
  const Matrix matrix{nullptr, outputs, inputs, bits};
  std::vector<uint8_t> made(matrix.units() * matrix.unit_bytes());
  for (uint8_t& byte : made) byte = static_cast<uint8_t>(random_bits() | (bits == 8));
  for (size_t block = 0; block < made.size(); block += block_bytes(bits)) {
    for (int i = 0; i < kScaleBytes; i += 2) {
      made[block + i] = 0;
      made[block + i + 1] = 0x24;
    }
  }
  return made;
}

template <class Job>
void run(const Scratch& scratch, Job job) {
  Workspace workspace;
  Pool& pool = Pool::shared();
  workspace.reserve(scratch.shared, scratch.own, pool.threads());
  pool.run([&](Team& team) { job(team, workspace.shared(), workspace.own(team.thread)); });
}

std::vector<float> linear_by(const Linear& layer, const std::vector<float>& x, int rows, Phase phase,
                             InstructionSet set) {
  std::vector<float> out(static_cast<size_t>(rows) * layer.matrix.outputs, NAN);
  run(linear_scratch(layer, rows, phase, set), [&](Team& team, uint8_t* shared, uint8_t* own) {
    linear(team, layer, x.data(), layer.matrix.inputs, rows, phase, set, shared, own, out.data(),
           layer.matrix.outputs);
  });
  return out;
}

std::vector<float> experts_by(const Experts& layer, const std::vector<float>& x,
                              const Routed& routed, Phase phase, InstructionSet set) {
  std::vector<float> y(static_cast<size_t>(routed.tokens) * layer.width, NAN);
  const Scratch scratch = experts_scratch(layer, routed.rows, routed.tokens, phase, set);
  run(scratch, [&](Team& team, uint8_t* shared, uint8_t* own) {
    experts(team, layer, x.data(), routed, phase, set, shared, own, y.data());
  });
  return y;
}

// The allowed relative error. With two int8 terms rounding hardly matters, and instruction sets
// differ only in the order of summation.
float bound(int bits, Phase phase, InstructionSet set, float one_term) {
  const bool bfloat = phase == Phase::prefill && set == InstructionSet::amx;
  return bits == 8 && !bfloat ? 1e-4f : one_term;
}

constexpr InstructionSet kSets[] = {InstructionSet::avx2, InstructionSet::avx512,
                                    InstructionSet::amx};

void check_linear(int outputs, int inputs, int bits) {
  const auto tiles = tiles_of(outputs, inputs, bits);
  const auto bias = floats(outputs);
  const Linear layer{{tiles.data(), outputs, inputs, bits}, bias.data()};
  for (int rows = 0; rows <= 40; ++rows) {
    const auto x = floats(static_cast<int64_t>(rows) * inputs);
    for (Phase phase : {Phase::decode, Phase::prefill, Phase::verify}) {
      const auto plain = linear_by(layer, x, rows, phase, InstructionSet::plain);
      for (InstructionSet set : kSets) {
        if (!has(set)) continue;
        expect_near(linear_by(layer, x, rows, phase, set), plain, bound(bits, phase, set, 1e-2f),
                    "linear", rows);
      }
    }
  }
}

void check_experts(int width, int expert_width, int bits, Activation activation) {
  constexpr int kExperts = 4;
  Experts layer{nullptr, kExperts, width, expert_width, bits, activation, nullptr, nullptr};
  const Matrix in = layer.in(), out = layer.out();
  const size_t size = in.units() * in.unit_bytes() + out.units() * out.unit_bytes();
  // Each expert has its own allocation, so that accesses beyond one expert are found.
  std::vector<std::vector<uint8_t>> tiles;
  std::vector<const uint8_t*> table;
  for (int i = 0; i < kExperts; ++i) {
    tiles.push_back(tiles_of(kUnit, static_cast<int>(size / block_bytes(bits)) * kBlock, bits));
    table.push_back(tiles.back().data());
  }
  const auto bias_in = floats(kExperts * in.outputs), bias_out = floats(kExperts * width);
  layer.tiles = table.data();
  layer.bias_in = bias_in.data();
  layer.bias_out = bias_out.data();
  for (int tokens : {0, 1, 2, 5, 16, 40}) {
    const auto x = floats(static_cast<int64_t>(tokens) * width), weight = floats(2 * tokens);
    std::vector<int64_t> token, expert;
    for (int row = 0; row < 2 * tokens; ++row) {
      token.push_back(row / 2);
      // Number kExperts means no expert.
      expert.push_back(static_cast<int64_t>(random_bits() % (kExperts + 1)));
    }
    const Routed routed{token.data(), expert.data(), weight.data(), 2 * tokens, tokens};
    for (Phase phase : {Phase::decode, Phase::prefill, Phase::verify}) {
      const auto plain = experts_by(layer, x, routed, phase, InstructionSet::plain);
      for (InstructionSet set : kSets) {
        if (!has(set)) continue;
        expect_near(experts_by(layer, x, routed, phase, set), plain, bound(bits, phase, set, 3e-2f),
                    "experts", tokens);
      }
    }
  }
}

// Only three tokens, in three different blocks, have a probability above 0.
void check_draw() {
  constexpr int kVocabulary = 2500, kRows = 6;
  std::vector<float> logits(2 * kVocabulary, -INFINITY);
  for (int row = 0; row < 2; ++row) {
    for (int token : {3, 1024, 2499}) logits[row * kVocabulary + token] = 5.0f;
  }
  logits[kVocabulary] = NAN;
  const std::vector<int64_t> number{0, 0, 0, 0, 0, 1}, expected{3, 3, 1024, 2499, 2499, -1};
  const std::vector<double> temperature(kRows, 0.5), uniform{0.0, 0.33, 0.34, 0.67, 1 - 0x1p-53, 0.5};
  const Draws draws{logits.data(), kVocabulary, number.data(),
                    kRows,         temperature.data(), uniform.data()};
  std::vector<int64_t> token(kRows, -2);
  run(draw_scratch(draws), [&](Team& team, uint8_t* shared, uint8_t*) {
    draw(team, draws, shared, token.data());
  });
  if (token != expected) {
    std::printf("draw: other tokens than expected\n");
    ++failures;
  }
}

void check_pool() {
  Pool& pool = Pool::shared();
  for (int threads : {1, 2, 5, 3}) {
    pool.set_threads(threads);
    std::vector<int64_t> sums(threads, 0);
    for (int job = 0; job < 200; ++job) {
      pool.run([&](Team& team) {
        for (int stage = 0; stage < 10; ++stage) {
          auto& next = team.counter();
          while (next.fetch_add(1, std::memory_order_relaxed) < 7) ++sums[team.thread];
          team.barrier();
        }
      });
    }
    int64_t whole = 0;
    for (int64_t sum : sums) whole += sum;
    if (whole != 200 * 10 * 7) {
      std::printf("pool of %d threads: %lld claims\n", threads, static_cast<long long>(whole));
      ++failures;
    }
  }
}

}  // namespace
}  // namespace mixtura

int main() {
  using namespace mixtura;
  check_pool();
  Pool::shared().set_threads(3);
  check_draw();
  for (int bits : {4, 8}) {
    check_linear(33, 96, bits);
    check_linear(96, 416, bits);
    check_linear(33, 2112, bits);
    check_experts(96, 80, bits, Activation::swiglu);
    check_experts(64, 272, bits, Activation::swiglu_clamped);
    check_experts(64, 160, bits, Activation::relu);
  }
  const std::vector<uint8_t> bytes(300001, 1);
  read_bytes(bytes.data(), static_cast<int64_t>(bytes.size()));
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
