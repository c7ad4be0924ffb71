// The vector loops of packing, compiled once for each instruction set. All give the same bytes,
// since they are compiled without fused multiply-adds.
#pragma once

#include <cstdint>
#include <cstring>

#include "packed/half.h"
#include "packing/lanes.h"
#include "packing/packing.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura {
namespace {

inline Floats nearest(Floats value) {
  // A float near 1.5 * 2^23 has no bits for a fraction, so the addition rounds, ties to even.
  const Floats shifted = value + 12582912.0f;
  return shifted - 12582912.0f;
}

inline Floats number_of(Floats value, const Levels& levels) {
  return smaller(larger(nearest(value), all(levels.low)), all(levels.high));
}

struct Fit {
  Floats wq, qq;  // <w, q> and <q, q>, the sums of w * q and q * q weighted by Panel::counts
};

// kLanes groups of weights, one in each lane, so that no sum crosses lanes. `w` has the weights
// divided by `extreme`, the group's weight of the largest size. `counts` weights the errors, as
// `_Fit` in groups.py does.
struct Panel {
  Floats w[kGroup], counts[kGroup];
  Floats extreme;
  bool sound;

  Panel(const float* given, float bound) {
    for (int i = 0; i < kGroup; i += kLanes) {
      Floats square[kLanes];
      UNROLL for (int lane = 0; lane < kLanes; ++lane) {
        square[lane] = load<Floats>(given + lane * kGroup + i);
      }
      transpose(square);
      UNROLL for (int j = 0; j < kLanes; ++j) w[i + j] = square[j];
    }
    Floats least = w[0], most = w[0], squares = {};
    for (int i = 1; i < kGroup; ++i) {
      least = smaller(w[i], least);
      most = larger(w[i], most);
    }
    extreme = most >= -least ? most : least;
    // If a weight is NaN or infinite, its square is NaN after the division by `extreme`.
    const Words within = (extreme <= all(bound)) & (extreme >= all(-bound));
    extreme = extreme == 0.0f ? all(1.0f) : extreme;
    for (int i = 0; i < kGroup; ++i) w[i] = w[i] / extreme;
    for (int i = 0; i < kGroup; ++i) squares += w[i] * w[i];
    const Words sound_lanes = within & (squares == squares);
    const Floats mean = squares / static_cast<float>(kGroup);
    for (int i = 0; i < kGroup; ++i) {
      const Floats square = w[i] * w[i];
      counts[i] = mean * mean + 0.03f * (square * square);
    }
    sound = true;
    for (int lane = 0; lane < kLanes; ++lane) sound = sound && sound_lanes[lane] != 0;
  }

  Fit fit(Floats inverse, const Levels& levels) const {
    Fit whole{};
    constexpr int kHalf = kGroup / 2;
    UNROLL for (int i = 0; i < kHalf; ++i) {
      const Floats one = number_of(w[i] * inverse, levels);
      const Floats other = number_of(w[i + kHalf] * inverse, levels);
      const Floats weighed = counts[i] * one, other_weighed = counts[i + kHalf] * other;
      whole.wq += w[i] * weighed + w[i + kHalf] * other_weighed;
      whole.qq += one * weighed + other * other_weighed;
    }
    return whole;
  }

  // The groups' scales before they are rounded to fp16.
  Floats scale(const Levels& levels) const {
    Fit chosen{{}, all(1.0f)};
    Floats kept = all(-1.0f);
    for (int level = 0; level < levels.count; ++level) {
      const Fit found = fit(all(levels.tried[level]), levels);
      // With the least-squares scale, the squared error is <w, w> - <w, q>^2 / <q, q>.
      const Floats explained = found.wq * found.wq / found.qq;
      const Words better = explained > kept;
      kept = better ? explained : kept;
      chosen.wq = better ? found.wq : chosen.wq;
      chosen.qq = better ? found.qq : chosen.qq;
    }
    Floats best = chosen.wq / chosen.qq;
    // Weights are rounded once more, with the scale just found, and the least-squares scale of
    // these numbers is taken.
    const Fit refined = fit(1.0f / (best == 0.0f ? all(1.0f) : best), levels);
    best = refined.qq > 0.0f ? refined.wq / refined.qq : best;
    // The size is at least 2^-24, the smallest in fp16. A scale of 0 would make all weights 0.
    const Floats own = best * extreme;
    Floats size = own < 0.0f ? -own : own;
    size = smaller(larger(size, all(5.9604644775390625e-8f)), all(65504.0f));
    return own < 0.0f ? -size : size;
  }
};

inline void round_group(const float* w, float scale, const Levels& levels, int8_t* q) {
  for (int i = 0; i < kGroup; i += kLanes) {
    const Floats number = number_of(load<Floats>(w + i) / scale, levels);
    const Bytes bytes = __builtin_convertvector(__builtin_convertvector(number, Words), Bytes);
    std::memcpy(q + i, &bytes, sizeof bytes);
  }
}

inline void widened(const void* w, Kind kind, int64_t count, float* out) {
  if (kind == Kind::float32) {
    std::memcpy(out, w, count * sizeof(float));
    return;
  }
  const auto* halves = static_cast<const uint16_t*>(w);
  for (int64_t i = 0; i < count; ++i) out[i] = from_bfloat(halves[i]);
}

bool search_groups(const void* w, Kind kind, int64_t groups, const Levels& levels, int8_t* q,
                   uint16_t* scale) {
  bool sound = true;
  const auto* bytes = static_cast<const uint8_t*>(w);
  alignas(64) float own[kLanes * kGroup] = {};
  for (int64_t group = 0; group < groups; group += kLanes) {
    const void* here = bytes + group * kGroup * bytes_of(kind);
    const int count = static_cast<int>(groups - group < kLanes ? groups - group : kLanes);
    const bool as_it_is = kind == Kind::float32 && count == kLanes;
    if (!as_it_is) widened(here, kind, static_cast<int64_t>(count) * kGroup, own);
    const float* weights = as_it_is ? static_cast<const float*>(here) : own;
    const Panel panel(weights, levels.bound);
    sound = sound && panel.sound;
    const Floats found = panel.scale(levels);
    for (int lane = 0; lane < count; ++lane) {
      scale[group + lane] = to_half(found[lane]);
      round_group(weights + lane * kGroup, from_half(scale[group + lane]), levels,
                  q + (group + lane) * kGroup);
    }
  }
  return sound;
}

// Writes a tile of one block; channel[i] points to the 64 numbers of channel i. Four numbers are a
// 32-bit word. A row of the tile has one word of each channel, so squares of words are transposed.
template <int kBits>
inline void tile_block(const int8_t* const (&channel)[kTile], uint8_t* out) {
  for (int word = 0; word < kBlock / 4; word += kLanes) {
    for (int first = 0; first < kTile; first += kLanes) {
      Words square[kLanes];
      UNROLL for (int lane = 0; lane < kLanes; ++lane) {
        square[lane] = load<Words>(channel[first + lane] + 4 * word);
      }
      transpose(square);
      if constexpr (kBits == 8) {
        UNROLL for (int i = 0; i < kLanes; ++i) {
          const Words stored = square[i] ^ static_cast<int32_t>(0x80808080);
          std::memcpy(out + (word + i) * 128 + first * 4, &stored, sizeof stored);
        }
      } else {
        UNROLL for (int i = 0; i < kLanes; i += 2) {
          const Words low = (square[i] ^ 0x08080808) & 0x0f0f0f0f;
          const Words high = ((square[i + 1] ^ 0x08080808) & 0x0f0f0f0f) << 4;
          const Words stored = low | high;
          std::memcpy(out + (word + i) / 2 * 128 + first * 4, &stored, sizeof stored);
        }
      }
    }
  }
}

void tile_rows(const Numbers& numbers, int64_t row, int count, uint8_t* out) {
  static constexpr int8_t kNone[kBlock] = {};
  const int64_t inputs = numbers.inputs, groups = inputs / kGroup;
  const int8_t* q = numbers.q + row * inputs;
  const uint16_t* scale = numbers.scale + row * groups;
  for (int64_t k = 0; k < inputs; k += kBlock, out += block_bytes(numbers.bits)) {
    const bool half = k + kBlock > inputs;
    int8_t padded[kTile][kBlock];
    const int8_t* channel[kTile];
    uint16_t scales[2][kTile] = {};
    for (int i = 0; i < kTile; ++i) {
      channel[i] = i < count ? q + i * inputs + k : kNone;
      if (i >= count) continue;
      scales[0][i] = scale[i * groups + k / kGroup];
      if (!half) {
        scales[1][i] = scale[i * groups + k / kGroup + 1];
        continue;
      }
      std::memcpy(padded[i], channel[i], kGroup);
      std::memset(padded[i] + kGroup, 0, kGroup);
      channel[i] = padded[i];
    }
    std::memcpy(out, scales, sizeof scales);
    if (numbers.bits == 4) {
      tile_block<4>(channel, out + kScaleBytes);
    } else {
      tile_block<8>(channel, out + kScaleBytes);
    }
  }
}

}  // namespace
}  // namespace mixtura
