// Compares attention and the fused step in each instruction set with the plain ones. All buffers
// have exactly the size that may be accessed, so that `make sanitize` finds accesses outside.
#include <cmath>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <vector>

#include "attention/attention.h"
#include "decoder/decoder.h"

namespace mixtura {
namespace {

constexpr InstructionSet kSets[] = {InstructionSet::avx2, InstructionSet::avx512,
                                    InstructionSet::amx};

int failures = 0;
std::mt19937 random_bits(7);

float uniform() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(random_bits); }

std::vector<float> floats(int64_t count) {
  std::vector<float> made(count);
  for (float& one : made) one = uniform();
  return made;
}

void expect_near(const std::vector<float>& found, const std::vector<float>& expected, float bound,
                 const char* what, int rows) {
  float worst = 0.0f, largest = 1e-9f;
  bool finite = true;
  for (size_t i = 0; i < expected.size(); ++i) {
    const float off = std::fabs(found[i] - expected[i]);
    finite = finite && std::isfinite(off);
    worst = std::fmax(worst, off);
    largest = std::fmax(largest, std::fabs(expected[i]));
  }
  if (finite && worst <= bound * largest) return;
  std::printf("%s, %d rows: off by %g of %g\n", what, rows, worst, largest);
  ++failures;
}

// A cache that owns its memory.
struct Owned {
  std::vector<uint8_t> keys, values;
  std::vector<float> key_scales, value_scales;
  LayerCache cache;

  Owned(Kept kept, int slots, int kv_heads, int64_t capacity, int key_dim, int value_dim)
      : keys(slots * kv_heads * capacity * key_dim * kept_bytes(kept)),
        values(slots * kv_heads * capacity * value_dim * kept_bytes(kept)),
        key_scales(kept == Kept::int8 ? slots * kv_heads * capacity : 0),
        value_scales(key_scales.size()),
        cache{keys.data(),         values.data(), key_scales.data(), value_scales.data(), kept,
              kv_heads,            capacity,      key_dim,           value_dim} {}
};

// Fills all slots to their capacity with random keys and values.
void fill(Owned& owned, int slots, InstructionSet set) {
  const LayerCache& cache = owned.cache;
  std::vector<int64_t> slot, position;
  for (int64_t i = 0; i < slots * cache.capacity; ++i) {
    slot.push_back(i / cache.capacity);
    position.push_back(i % cache.capacity);
  }
  const int rows = static_cast<int>(slot.size());
  const auto k = floats(int64_t{rows} * cache.kv_heads * cache.key_dim);
  const auto v = floats(int64_t{rows} * cache.kv_heads * cache.value_dim);
  Pool::shared().run([&](Team& team) {
    append(team, cache, {rows, slot.data(), position.data()}, k.data(), v.data(), set);
  });
}

std::vector<float> attend_by(const LayerCache& cache, const TokenRows& rows, Queries queries,
                             Phase phase, InstructionSet set) {
  std::vector<float> out(int64_t{rows.count} * queries.heads * cache.value_dim, NAN);
  queries.out = out.data();
  AttentionPlan plan;
  plan.make(rows, queries, cache.kv_heads, phase);
  const Scratch scratch = attention_scratch(plan, cache, queries.heads, set);
  Workspace workspace;
  Pool& pool = Pool::shared();
  workspace.reserve(scratch.shared, scratch.own, pool.threads());
  pool.run([&](Team& team) {
    attend(team, plan, cache, rows, queries, set, workspace.shared(), workspace.own(team.thread));
  });
  return out;
}

void check_attention(Kept kept, int heads, int kv_heads, int key_dim, int value_dim) {
  constexpr int kSlots = 2;
  // Nearly three splits of 256, and not a multiple of a block of 64.
  constexpr int64_t kCapacity = 700;
  Owned owned(kept, kSlots, kv_heads, kCapacity, key_dim, value_dim);
  fill(owned, kSlots, InstructionSet::plain);
  const auto sinks = floats(heads);
  for (int count : {0, 1, 3, 40}) {
    const auto q = floats(int64_t{count} * heads * key_dim);
    std::vector<int64_t> slot, position;
    for (int row = 0; row < count; ++row) {
      slot.push_back(row % 9 == 0);
      const auto somewhere = static_cast<int64_t>(random_bits() % kCapacity);
      position.push_back(row == 0 ? kCapacity - 1 : somewhere);
    }
    const TokenRows rows{count, slot.data(), position.data()};
    for (int64_t window : {0, 65}) {
      const Queries queries{q.data(), int64_t{heads} * key_dim, heads, 0.2f,
                            window,   sinks.data(),             nullptr};
      for (Phase phase : {Phase::decode, Phase::prefill}) {
        const auto plain = attend_by(owned.cache, rows, queries, phase, InstructionSet::plain);
        for (InstructionSet set : kSets) {
          if (!has(set)) continue;
          const float bound = set == InstructionSet::amx && kept != Kept::fp32 ? 2e-2f : 1e-4f;
          expect_near(attend_by(owned.cache, rows, queries, phase, set), plain, bound, "attention",
                      count);
        }
      }
    }
  }
}

// Random 8-bit weights with scales of 1/1024, which is 0x1400 in fp16.
std::vector<uint8_t> tiles_of(const Matrix& matrix) {
  std::vector<uint8_t> made(matrix.units() * matrix.unit_bytes());
  for (uint8_t& byte : made) byte = static_cast<uint8_t>(random_bits() | 1);
  for (size_t block = 0; block < made.size(); block += block_bytes(8)) {
    for (int i = 0; i < kScaleBytes; i += 2) {
      made[block + i] = 0;
      made[block + i + 1] = 0x14;
    }
  }
  return made;
}

// The weights of a small decoder: two layers with attention, of which the second gates its output,
// and one with a Gated DeltaNet, all with routed and shared experts.
class Weights {
 public:
  static constexpr int kWidth = 64, kHeads = 4, kKvHeads = 2, kDim = 16, kVocabulary = 70;
  static constexpr int kExperts = 6, kExpertWidth = 48, kContext = 300, kSlots = 5;
  static constexpr int kKeyDim = 16, kValueHeads = 2, kTaps = 4;

  Weights()
      : norm_(kWidth, 1.0f), angles_(floats(kContext * kDim)), gate_(floats(kExperts * kWidth)) {
    embedding_ = tiles_of({nullptr, kVocabulary, kWidth, 8});
    qkv_ = tiles_of({nullptr, (kHeads + 2 * kKvHeads) * kDim, kWidth, 8});
    out_ = tiles_of({nullptr, kWidth, kHeads * kDim, 8});
    mixer_ = {1, kValueHeads, kKeyDim, kDim, kTaps, nullptr, nullptr, nullptr, norm_.data(), 1e-6f};
    const auto channels = static_cast<int>(mixer_.channels());
    const auto values = static_cast<int>(mixer_.values());
    projection_ = tiles_of({nullptr, channels + values, kWidth, 8});
    mixed_ = tiles_of({nullptr, kWidth, values, 8});
    gates_ = floats(2 * kValueHeads * kWidth);
    conv_ = floats(kTaps * channels);
    rates_ = {0.1f, 0.5f};
    mixer_.conv = conv_.data();
    mixer_.rate = mixer_.step_bias = rates_.data();
    const Experts one = experts(1);
    const size_t expert =
        one.in().units() * one.in().unit_bytes() + one.out().units() * one.out().unit_bytes();
    const int blocks = static_cast<int>(expert / block_bytes(8)) * kExperts;
    experts_ = tiles_of({nullptr, kUnit, blocks * kBlock, 8});
    for (int i = 0; i < kExperts; ++i) table_.push_back(experts_.data() + i * expert);
  }

  // Runs three steps on new caches and returns the logits of the last step.
  std::vector<float> run(InstructionSet set, int rows, const Routes& routes = {}) const {
    std::vector<Owned> caches;
    const Linear head{{embedding_.data(), kVocabulary, kWidth, 8}, nullptr};
    Program program(head.matrix, 1.0f, 1.0f, norm(), head, 0.5f);
    caches.reserve(2);
    for (int layer = 0; layer < 2; ++layer) {
      caches.emplace_back(Kept::bf16, kSlots, kKvHeads, kContext, kDim, kDim);
      program.add({norm(), attention(caches.back().cache, layer == 0 ? 0 : 20, layer == 1), {},
                   ffn()});
    }
    std::vector<float> tails(kSlots * (kTaps - 1) * mixer_.channels());
    std::vector<float> matrices(kSlots * kKeyDim * mixer_.values());
    program.add({norm(), delta(tails.data(), matrices.data()), {}, ffn()});
    std::vector<float> logits(rows * kVocabulary, NAN);
    for (int64_t at = 0; at < 3; ++at) {
      std::vector<int64_t> token, slot, position, asked;
      for (int row = 0; row < rows; ++row) {
        token.push_back((row * 31 + at) % kVocabulary);
        slot.push_back(row % kSlots);
        position.push_back(row / kSlots * 3 + at);
        asked.push_back(row);
      }
      // With more rows than slots, a slot has several rows, as in prefill and verify.
      const Phase many = at == 1 ? Phase::verify : Phase::prefill;
      const Phase phase = rows > kSlots ? many : Phase::decode;
      program.step({{rows, slot.data(), position.data()}, position.data(), token.data(),
                    asked.data(), rows, phase}, routes, set, logits.data());
    }
    return logits;
  }

 private:
  Norm norm() const { return {Norm::Kind::rms, norm_.data(), nullptr, 1e-6f}; }
  Experts experts(int count) const {
    return {table_.data(), count, kWidth, kExpertWidth, 8, Activation::swiglu, nullptr, nullptr};
  }
  GroupedAttention attention(const LayerCache& cache, int64_t window, bool gated) const {
    const Norm head{Norm::Kind::rms, norm_.data(), nullptr, 1e-6f};
    const CachedHeads over{{{out_.data(), kWidth, kHeads * kDim, 8}, nullptr}, kHeads, 0.25f, window,
                           nullptr, angles_.data(), angles_.data(), kDim, cache};
    // The gate has the first rows of qkv.
    return {over, {{qkv_.data(), (kHeads + 2 * kKvHeads) * kDim, kWidth, 8}, nullptr}, head, head,
            false, 0.0f, gated, {{qkv_.data(), kHeads * kDim, kWidth, 8}, nullptr}};
  }
  GatedDelta delta(float* tails, float* matrices) const {
    const auto rows = static_cast<int>(mixer_.channels() + mixer_.values());
    const auto values = static_cast<int>(mixer_.values());
    return {{{projection_.data(), rows, kWidth, 8}, nullptr},
            {{mixed_.data(), kWidth, values, 8}, nullptr},
            {gates_.data(), Kept::fp32, kWidth, kWidth}, mixer_, {tails, matrices}};
  }
  FfnBlock ffn() const {
    const Gate gate{{gate_.data(), Kept::fp32, kWidth, kWidth}, nullptr, nullptr, kExperts, 2,
                    Score::softmax, Weigh::softmax, 1.0f, 1.0f, 1, 1, 1};
    return {norm(), true, gate, experts(kExperts), true, experts(1), nullptr, {}};
  }

  std::vector<float> norm_, angles_, gate_, gates_, conv_, rates_;
  std::vector<uint8_t> embedding_, qkv_, out_, experts_, projection_, mixed_;
  DeltaMixer mixer_{};
  std::vector<const uint8_t*> table_;
};

// Checks Routes: the choices that are returned, a limit for each row, and an exception of
// `between`.
void check_routes() {
  const Weights weights;
  constexpr int kRows = 20, kChosen = 3 * kRows * 2;
  std::vector<int64_t> expert(kChosen, -1), limit(kRows, 1);
  std::vector<float> weight(kChosen, NAN);
  int calls = 0;
  Routes routes{expert.data(), weight.data(), limit.data(), [&](int) { ++calls; }};
  const auto limited = weights.run(InstructionSet::plain, kRows, routes);
  bool right = calls == 3 * 3;
  for (int i = 0; i < kChosen; i += 2) {
    right = right && expert[i] < Weights::kExperts && weight[i] == 1.0f;
    right = right && expert[i + 1] == Weights::kExperts && weight[i + 1] == 0.0f;
  }
  routes.between = [](int layer) {
    if (layer == 1) throw std::runtime_error("as asked");
  };
  try {
    weights.run(InstructionSet::plain, kRows, routes);
    right = false;
  } catch (const std::runtime_error&) {
  }
  std::fill(limit.begin(), limit.end(), 9);
  routes.between = nullptr;
  const auto free = weights.run(InstructionSet::plain, kRows);
  expect_near(weights.run(InstructionSet::plain, kRows, routes), free, 0.0f, "routes", kRows);
  if (!right || limited == free) {
    std::printf("routes: other choices than expected\n");
    ++failures;
  }
}

void check_program() {
  const Weights weights;
  for (int rows : {0, 1, 5, 20}) {
    const auto plain = weights.run(InstructionSet::plain, rows);
    for (InstructionSet set : kSets) {
      if (has(set)) expect_near(weights.run(set, rows), plain, 5e-2f, "program", rows);
    }
  }
}

}  // namespace
}  // namespace mixtura

int main() {
  using namespace mixtura;
  Pool::shared().set_threads(3);
  for (Kept kept : {Kept::fp32, Kept::bf16, Kept::int8}) {
    check_attention(kept, 4, 4, 64, 64);
    check_attention(kept, 16, 2, 32, 32);
    check_attention(kept, 6, 2, 33, 17);
  }
  check_program();
  check_routes();
  std::printf(failures ? "%d checks of attention failed\n" : "attention too\n", failures);
  return failures != 0;
}
