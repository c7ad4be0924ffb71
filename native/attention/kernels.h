// Attention's inner loops: what every instruction set implements.
#pragma once

#include <cstdint>

namespace mixtura {

// Positions are walked in blocks of this many, counted from 0.
constexpr int kPositions = 64;
// In decode, a row's positions are cut into splits of this many, counted from 0, so that threads
// can share one long row; partial results are combined in their order, however many threads.
constexpr int kSplit = 256;

// How keys and values are kept.
enum class Kept : int { fp32, bf16, int8 };

constexpr int64_t kept_bytes(Kept kept) {
  return kept == Kept::fp32 ? 4 : kept == Kept::bf16 ? 2 : 1;
}

// Buffers of fp32 are padded by zeros to whole vectors of the widest instruction set.
constexpr int kLanesMost = 16;

constexpr int padded(int dim) { return (dim + kLanesMost - 1) / kLanesMost * kLanesMost; }

// Vectors of a block of positions: `stride` numbers from one to the next, `dim` of which count.
struct Vectors {
  const void* at;
  Kept kept;
  int64_t stride;
  int dim;
};

// The state of one online softmax: exponents are relative to `largest`.
struct Softmax {
  float largest;
  float sum;
};

struct AttentionKernels {
  const char* name;

  // scores[head * kPositions + p] = q_head . key_p for p < count; q_head is at q + head * stride,
  // and padded.
  // About as many bytes as are read here are fetched from `ahead` on, which is read next.
  void (*scores)(const Vectors& keys, int count, const float* q, int64_t stride, int heads,
                 float* scores, const uint8_t* ahead);

  // out_head += the sum over p < count of weights[head * kPositions + p] value_p; out is padded.
  void (*mix)(const Vectors& values, int count, const float* weights, int heads, float* out,
              int64_t stride, const uint8_t* ahead);

  // Scores of positions begin..end-1 of a block become weights e^(score - largest), all others
  // below kPositions become 0. Scores are multiplied by `scale`, and where the cache is int8 by
  // key_scales; weights, after they are summed, by value_scales. Returns what all that was summed
  // before is to be multiplied by.
  float (*weigh)(float* scores, int begin, int end, float scale, const float* key_scales,
                 const float* value_scales, Softmax& softmax);

  // x[0..dim) *= factor; dim is padded.
  void (*multiply)(float* x, int dim, float factor);

  // Keys of a block as [dim][kPositions], values as [kPositions][padded dim], in fp32 and times
  // their scales, which are null where they have none; zero beyond `count`.
  void (*pack_keys)(const Vectors& keys, int count, const float* scales, float* packed);
  void (*pack_values)(const Vectors& values, int count, const float* scales, float* packed);

  // c[row * columns + j] = factor[row] c + sum over i < inner of a[row * a_stride + i] b[i *
  // columns + j]; without factors, the sum alone. `columns` are padded. Each number is summed in
  // the order of i, however many rows there are.
  void (*product)(const float* a, int64_t a_stride, int rows, int inner, const float* b,
                  int columns, const float* factor, float* c);

  // One vector into the cache: to the nearest, ties to even. Gives the scale of int8, else 0.
  float (*keep)(const float* x, int dim, Kept kept, void* at);
};

const AttentionKernels& plain_attention();
#if defined(__x86_64__)
const AttentionKernels& avx2_attention();
const AttentionKernels& avx512_attention();
#endif

}  // namespace mixtura
