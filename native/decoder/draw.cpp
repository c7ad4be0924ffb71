#include "decoder/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "packed/rows.h"

namespace mixtura {
namespace {

constexpr int64_t kAtOnce = 1024;  // tokens of a block; each block has its own sum
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// The largest logit of a block, and the sum of its shares (see Shares).
struct Block {
  float largest;
  double sum;
};

// Returns the largest logit, or NaN if any logit is NaN.
float largest_of(const float* logits, int64_t count) {
  constexpr int kLanes = 16;
  float most[kLanes], strange[kLanes] = {};  // NaN once a NaN is met, else 0
  std::fill(most, most + kLanes, kNothing);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float one = logits[i + lane];
      most[lane] = one > most[lane] ? one : most[lane];
      strange[lane] = one == one ? strange[lane] : one;
    }
  }
  for (; i < count; ++i) {
    most[0] = logits[i] > most[0] ? logits[i] : most[0];
    strange[0] = logits[i] == logits[i] ? strange[0] : logits[i];
  }
  return *std::max_element(most, most + kLanes) + std::accumulate(strange, strange + kLanes, 0.0f);
}

typedef double Two __attribute__((vector_size(16)));
typedef int64_t TwoBits __attribute__((vector_size(16)));

// e^x for x <= 0, with a relative error below 4e-16; 0 for x < -708.
inline Two exponential(Two x) {
  constexpr double kToInteger = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  constexpr double kHigh = 0x1.62e42fefa38p-1, kLow = 0x1.ef35793c7673p-45;  // sum: ln 2
  const Two shifted = x * 1.4426950408889634 + kToInteger;
  const Two whole = shifted - kToInteger;
  const Two r = (x - whole * kHigh) - whole * kLow;
  Two sum = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  sum = sum * r + 0.5;
  sum = sum * r + 1.0;
  sum = sum * r + 1.0;
  const auto power = (Two)(((TwoBits)shifted + 1023) << 52);
  return (Two)((TwoBits)(sum * power) & (TwoBits)(x >= -708.0));
}

// The shares of a row's tokens: exp((logit - largest) / temperature).
struct Shares {
  const float* logits;
  int64_t vocabulary;
  double temperature;
  float largest;

  int64_t size(int64_t block) const { return std::min(kAtOnce, vocabulary - block * kAtOnce); }

  // Writes the shares of one block, and zeros beyond the vocabulary. The largest logit is
  // subtracted before the division, because logits divided by a tiny temperature may become inf,
  // and inf - inf is NaN.
  void of(int64_t block, double (&share)[kAtOnce]) const {
    const float* own = logits + block * kAtOnce;
    const double most = largest;
    const int64_t count = size(block);
    for (int64_t i = 0; i < kAtOnce; i += 2) {
      const Two x = {i < count ? own[i] - most : -INFINITY,
                     i + 1 < count ? own[i + 1] - most : -INFINITY};
      const Two both = exponential(x / temperature);
      share[i] = both[0];
      share[i + 1] = both[1];
    }
  }

  double sum_of(int64_t block) const {
    constexpr int kLanes = 8;
    double share[kAtOnce], sum[kLanes] = {};
    of(block, share);
    for (int64_t i = 0; i < kAtOnce; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) sum[lane] += share[i + lane];
    }
    return std::accumulate(sum, sum + kLanes, 0.0);
  }
};

int64_t choose(const Shares& row, const Block* blocks, int64_t count, double uniform) {
  double total = 0;
  for (int64_t block = 0; block < count; ++block) total += blocks[block].sum;
  const double aim = total * uniform;
  // Rounding may lift `aim` above the sum of all shares. Then the last token with a share above 0
  // is chosen, from the last block with such a token.
  int64_t chosen = 0;
  double before = 0, passed = 0;
  for (int64_t block = 0; block < count && passed <= aim; ++block) {
    if (blocks[block].sum <= 0) continue;
    chosen = block;
    before = passed;
    passed += blocks[block].sum;
  }
  double share[kAtOnce];
  row.of(chosen, share);
  int64_t last = 0;
  for (int64_t i = 0; i < row.size(chosen) && before <= aim; ++i) {
    before += share[i];
    if (share[i] > 0) last = chosen * kAtOnce + i;
  }
  return last;
}

}  // namespace

Scratch draw_scratch(const Draws& draws) {
  Carver shared(nullptr);
  shared.take<Block>(draws.rows * (round_up(draws.vocabulary, kAtOnce) / kAtOnce));
  return {shared.used(), 0};
}

void draw(Team& team, const Draws& draws, uint8_t* shared, int64_t* token) {
  const int64_t count = round_up(draws.vocabulary, kAtOnce) / kAtOnce;
  Block* blocks = Carver(shared).take<Block>(draws.rows * count);
  const auto row_of = [&](int64_t i) {
    const Block* own = blocks + i * count;
    float largest = own->largest;
    for (int64_t block = 1; block < count; ++block) {
      // Once `largest` is NaN it stays NaN, because no number is greater than NaN.
      if (own[block].largest > largest || std::isnan(own[block].largest)) {
        largest = own[block].largest;
      }
    }
    return Shares{draws.logits + draws.number[i] * draws.vocabulary, draws.vocabulary,
                  draws.temperature[i], largest};
  };
  const int64_t all = draws.rows * count;
  for (int64_t one = team.thread; one < all; one += team.threads) {
    const int64_t block = one % count;
    const float* logits = draws.logits + draws.number[one / count] * draws.vocabulary;
    blocks[one].largest = largest_of(logits + block * kAtOnce,
                                     std::min(kAtOnce, draws.vocabulary - block * kAtOnce));
  }
  team.barrier();
  for (int64_t one = team.thread; one < all; one += team.threads) {
    const Shares row = row_of(one / count);
    blocks[one].sum = std::isfinite(row.largest) ? row.sum_of(one % count) : 0.0;
  }
  team.barrier();
  for (int64_t i = team.thread; i < draws.rows; i += team.threads) {
    const Shares row = row_of(i);
    const bool finite = std::isfinite(row.largest);
    token[i] = finite ? choose(row, blocks + i * count, count, draws.uniform[i]) : -1;
  }
}

}  // namespace mixtura
