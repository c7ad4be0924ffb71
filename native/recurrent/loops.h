// The loops of recurrent mixers over vectors, compiled once for each instruction set: the file that
// includes this has defined `Vec` before, in its own unnamed namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention/exponential.h"
#include "recurrent/kernels.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura {
namespace {

constexpr int kLanes = Vec::kLanes;
constexpr int kVectorsMost = 2;
// Numbers of a cache line.
constexpr int kLine = 16;
static_assert(kVectorsMost * kLanes <= kColumnsMost);

inline V load_up_to(const float* x, int count) {
  return count >= kLanes ? Vec::load(x) : Vec::load_some(x, count);
}

inline void store_up_to(float* x, V v, int count) {
  if (count >= kLanes) return Vec::store(x, v);
  alignas(64) float all[kLanes];
  Vec::store(all, v);
  std::memcpy(x, all, count * sizeof(float));
}

// x / (1 + e^-x), without the exponential of a positive number, which could overflow.
inline V silu(V x) {
  const V negated = Vec::mul(x, Vec::all(-1.0f));
  const V least = exponential(Vec::mul(Vec::larger(negated, Vec::zero()), Vec::all(-1.0f)));
  const V size = Vec::larger(negated, x);
  const V other = exponential(Vec::mul(size, Vec::all(-1.0f)));
  return Vec::mul(x, Vec::div(least, Vec::add(Vec::all(1.0f), other)));
}

void convolve(const float* const* inputs, int taps, const float* weight, int64_t stride, int dim,
              float* out) {
  for (int c = 0; c < dim; c += kLanes) {
    const int count = dim - c;
    V sum = Vec::mul(load_up_to(inputs[0] + c, count), load_up_to(weight + c, count));
    for (int tap = 1; tap < taps; ++tap) {
      const V w = load_up_to(weight + tap * stride + c, count);
      sum = Vec::fma(load_up_to(inputs[tap] + c, count), w, sum);
    }
    Vec::store(out + c, silu(sum));
  }
}

float dot(const float* a, const float* b, int dim) {
  V sum = Vec::zero();
  for (int c = 0; c < dim; c += kLanes) {
    sum = Vec::fma(Vec::load(a + c), Vec::load(b + c), sum);
  }
  return Vec::sum(sum);
}

void set_length(float* x, int dim, float epsilon, float factor) {
  const V scale = Vec::all(factor / std::sqrt(dot(x, x, dim) + epsilon));
  for (int c = 0; c < dim; c += kLanes) Vec::store(x + c, Vec::mul(Vec::load(x + c), scale));
}

// The sums of a step over a state's rows: under the key, and under the query. Even and odd rows are
// summed apart, so that a sum need not wait for the one before it.
template <int kVectors>
struct Sums {
  V key[2][kVectors], query[2][kVectors];

  Sums() {
    UNROLL for (int part = 0; part < 2; ++part) {
      UNROLL for (int v = 0; v < kVectors; ++v) key[part][v] = query[part][v] = Vec::zero();
    }
  }
  void add(int part, int v, V state, V k, V q) {
    key[part][v] = Vec::fma(k, state, key[part][v]);
    query[part][v] = Vec::fma(q, state, query[part][v]);
  }
};

// row(i, i % 2) for each row of a state, two at a time.
template <class Row>
inline void each_row(int rows, const Row& row) {
  int i = 0;
  for (; i + 2 <= rows; i += 2) {
    row(i, 0);
    row(i + 1, 1);
  }
  if (i < rows) row(i, 0);
}

// A step's sums are made while the step before it writes: the tile is passed over once a step.
template <int kVectors>
void advance_tile(const DeltaSteps& steps, float* state, int64_t stride, int width,
                  const float* ahead, float* tile) {
  constexpr int kWidth = kVectors * kLanes;
  const int rows = steps.key_dim;
  const float *q = steps.q, *k = steps.k;
  Sums<kVectors> sums;
  each_row(rows, [&](int i, int part) {
    const V key = Vec::all(k[i]), query = Vec::all(q[i]);
    UNROLL for (int c = 0; c < kWidth; c += kLine) __builtin_prefetch(ahead + i * stride + c);
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const V x = load_up_to(state + i * stride + v * kLanes, width - v * kLanes);
      Vec::store(tile + i * kWidth + v * kLanes, x);
      sums.add(part, v, x, key, query);
    }
  });
  for (int step = 0;; ++step) {
    const float* value = steps.v + step * steps.stride;
    float* out = steps.out + steps.row[step] * steps.out_stride;
    const V decay = Vec::all(steps.decay[step * steps.heads]);
    const V beta = Vec::all(steps.beta[step * steps.heads]);
    const V match = Vec::all(steps.match[step * steps.heads]);
    const V minus = Vec::mul(decay, Vec::all(-1.0f));
    V written[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const V held = Vec::add(sums.key[0][v], sums.key[1][v]);
      const V read = Vec::add(sums.query[0][v], sums.query[1][v]);
      written[v] = Vec::mul(beta, Vec::fma(minus, held, Vec::load(value + v * kLanes)));
      const V found = Vec::fma(match, written[v], Vec::mul(decay, read));
      store_up_to(out + v * kLanes, found, width - v * kLanes);
    }
    const float* own = k;
    if (step + 1 == steps.count) {
      each_row(rows, [&](int i, int) {
        const V key = Vec::all(own[i]);
        UNROLL for (int v = 0; v < kVectors; ++v) {
          V x = Vec::mul(decay, Vec::load(tile + i * kWidth + v * kLanes));
          x = Vec::fma(key, written[v], x);
          store_up_to(state + i * stride + v * kLanes, x, width - v * kLanes);
        }
      });
      return;
    }
    q += steps.stride;
    k += steps.stride;
    Sums<kVectors> next;
    each_row(rows, [&](int i, int part) {
      const V key = Vec::all(own[i]), next_key = Vec::all(k[i]), query = Vec::all(q[i]);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        float* at = tile + i * kWidth + v * kLanes;
        const V x = Vec::fma(key, written[v], Vec::mul(decay, Vec::load(at)));
        Vec::store(at, x);
        next.add(part, v, x, next_key, query);
      }
    });
    sums = next;
  }
}

void advance(const DeltaSteps& steps, float* state, int64_t stride, int width, const float* ahead,
             float* tile) {
  if (width > kLanes) return advance_tile<2>(steps, state, stride, width, ahead, tile);
  advance_tile<1>(steps, state, stride, width, ahead, tile);
}

void norm(float* x, const float* gate, const float* weight, int dim, float epsilon) {
  V sum = Vec::zero();
  for (int c = 0; c < dim; c += kLanes) {
    const V v = load_up_to(x + c, dim - c);
    sum = Vec::fma(v, v, sum);
  }
  const V factor = Vec::all(1.0f / std::sqrt(Vec::sum(sum) / static_cast<float>(dim) + epsilon));
  for (int c = 0; c < dim; c += kLanes) {
    const int count = dim - c;
    const V normed = Vec::mul(Vec::mul(load_up_to(x + c, count), factor),
                              load_up_to(weight + c, count));
    store_up_to(x + c, Vec::mul(normed, silu(load_up_to(gate + c, count))), count);
  }
}

constexpr DeltaKernels kernels_named(const char* name) {
  return {name, kVectorsMost * kLanes, convolve, set_length, dot, advance, norm};
}

}  // namespace
}  // namespace mixtura

#undef UNROLL
