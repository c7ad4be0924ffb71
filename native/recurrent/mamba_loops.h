// The loops of Mamba-2 over vectors, compiled once for each instruction set. They share small
// functions with loops.h, behind which the file that includes this has included it.
#pragma once

#include "recurrent/loops.h"
#include "recurrent/mamba_kernels.h"

#define UNROLL _Pragma("GCC unroll 4")

namespace mixtura {
namespace {

constexpr int kMambaVectors = 4;

void convolve_with_bias(const float* const* inputs, int taps, const float* weight, int64_t stride,
                        const float* bias, int dim, float* out) {
  for (int c = 0; c < dim; c += kLanes) {
    const int count = dim - c;
    V sum = Vec::mul(load_up_to(inputs[0] + c, count), load_up_to(weight + c, count));
    for (int tap = 1; tap < taps; ++tap) {
      const V w = load_up_to(weight + tap * stride + c, count);
      sum = Vec::fma(load_up_to(inputs[tap] + c, count), w, sum);
    }
    store_up_to(out + c, silu(Vec::add(sum, load_up_to(bias + c, count))), count);
  }
}

// `kVectors` vectors of a state, of which the last is whole or not.
template <int kVectors, bool kWhole>
struct Columns {
  int width;

  V load(const float* x, int v) const {
    if (kWhole || v + 1 < kVectors) return Vec::load(x + v * kLanes);
    return Vec::load_some(x + v * kLanes, width - v * kLanes);
  }
  void store(float* x, int v, V value) const {
    if (kWhole || v + 1 < kVectors) return Vec::store(x + v * kLanes, value);
    store_up_to(x + v * kLanes, value, width - v * kLanes);
  }
};

// The first step reads the state and the last one writes it; between them it stays in `tile`.
template <int kVectors, bool kWhole>
void advance_columns(const MambaSteps& steps, float* state, int64_t stride, int width,
                     float* tile) {
  const Columns<kVectors, kWhole> columns{width};
  constexpr int64_t kTileStride = kVectors * kLanes;
  for (int number = 0; number < steps.count; ++number) {
    const bool first = number == 0, last = number + 1 == steps.count;
    const float* from = first ? state : tile;
    float* to = last ? state : tile;
    const int64_t from_stride = first ? stride : kTileStride;
    const int64_t to_stride = last ? stride : kTileStride;
    const float* x = steps.x + number * steps.stride;
    const float* b = steps.b + number * steps.stride;
    const float* c = steps.c + number * steps.stride;
    float* out = steps.out + steps.row[number] * steps.out_stride;
    const V decay = Vec::all(steps.decay[number]), step = Vec::all(steps.step[number]);
    V written[kVectors], sum[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) {
      written[v] = Vec::mul(step, columns.load(x, v));
      sum[v] = Vec::zero();
    }
    for (int i = 0; i < steps.state_dim; ++i) {
      const V key = Vec::all(b[i]), query = Vec::all(c[i]);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const V kept = Vec::mul(decay, columns.load(from + i * from_stride, v));
        const V now = Vec::fma(key, written[v], kept);
        columns.store(to + i * to_stride, v, now);
        sum[v] = Vec::fma(query, now, sum[v]);
      }
    }
    const V skip = Vec::all(steps.skip);
    UNROLL for (int v = 0; v < kVectors; ++v) {
      columns.store(out, v, Vec::fma(skip, columns.load(x, v), sum[v]));
    }
  }
}

template <int kVectors>
void advance_vectors(const MambaSteps& steps, float* state, int64_t stride, int width,
                     float* tile) {
  if (width == kVectors * kLanes) {
    return advance_columns<kVectors, true>(steps, state, stride, width, tile);
  }
  advance_columns<kVectors, false>(steps, state, stride, width, tile);
}

void advance_channels(const MambaSteps& steps, float* state, int64_t stride, int width,
                      float* tile) {
  switch ((width + kLanes - 1) / kLanes) {
    case 1: return advance_vectors<1>(steps, state, stride, width, tile);
    case 2: return advance_vectors<2>(steps, state, stride, width, tile);
    case 3: return advance_vectors<3>(steps, state, stride, width, tile);
    default: return advance_vectors<kMambaVectors>(steps, state, stride, width, tile);
  }
}

void gated_norm(float* x, const float* gate, const float* weight, int dim, float epsilon) {
  V sum = Vec::zero();
  for (int c = 0; c < dim; c += kLanes) {
    const int count = dim - c;
    const V y = Vec::mul(load_up_to(x + c, count), silu(load_up_to(gate + c, count)));
    store_up_to(x + c, y, count);
    sum = Vec::fma(y, y, sum);
  }
  const V factor = Vec::all(1.0f / std::sqrt(Vec::sum(sum) / static_cast<float>(dim) + epsilon));
  for (int c = 0; c < dim; c += kLanes) {
    const int count = dim - c;
    const V normed = Vec::mul(load_up_to(x + c, count), factor);
    store_up_to(x + c, Vec::mul(normed, load_up_to(weight + c, count)), count);
  }
}

constexpr MambaKernels mamba_kernels_named(const char* name) {
  return {name, kMambaVectors * kLanes, convolve_with_bias, advance_channels, gated_norm};
}

}  // namespace
}  // namespace mixtura

#undef UNROLL
