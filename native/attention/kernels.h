// The inner loops of attention, which each instruction set implements.
#pragma once

#include <cstdint>

namespace mixtura {

// Positions of a block. Blocks begin at multiples of kPositions.
constexpr int kPositions = 64;
// Positions of a split. In decode, the positions of a row are cut at multiples of kSplit, so that
// several threads can work on one long row. Partial results are combined in the order of the
// splits, so the result does not depend on the number of threads.
constexpr int kSplit = 256;

// The number format of cached keys and values.
enum class Kept : int { fp32, bf16, int8 };

constexpr int64_t kept_bytes(Kept kept) {
  return kept == Kept::fp32 ? 4 : kept == Kept::bf16 ? 2 : 1;
}

// Lanes of the widest vectors. "Padded" fp32 buffers end with zeros up to a multiple of this.
constexpr int kLanesMost = 16;

constexpr int padded(int dim) { return (dim + kLanesMost - 1) / kLanesMost * kLanesMost; }

// Key or value vectors of consecutive positions. Each vector has `dim` numbers and begins `stride`
// numbers after the vector before it.
struct Vectors {
  const void* at;
  Kept kept;
  int64_t stride;
  int dim;
};

// The state of one online softmax: the largest score so far, and the sum of e^(score - largest).
struct Softmax {
  float largest;
  float sum;
};

struct AttentionKernels {
  const char* name;

  // scores[head * kPositions + p] = q_head . key_p for p < count. q_head begins at q + head *
  // stride and is padded. `ahead` is the memory that the caller reads next; about as many bytes of
  // it are prefetched as `keys` has.
  void (*scores)(const Vectors& keys, int count, const float* q, int64_t stride, int heads,
                 float* scores, const uint8_t* ahead);

  // out_head += sum over p < count of weights[head * kPositions + p] * value_p. out_head begins at
  // out + head * stride and is padded. If `ahead` is not null, it is prefetched as in `scores`.
  void (*mix)(const Vectors& values, int count, const float* weights, int heads, float* out,
              int64_t stride, const uint8_t* ahead);

  // Replaces the scores of positions begin..end-1 of a block by weights e^(score - largest), and
  // the block's other scores by 0. Scores are first multiplied by `scale`. For an int8 cache,
  // scores are also multiplied by key_scales, and weights by value_scales after they are added to
  // softmax.sum. Returns the factor for earlier weighted sums, below 1 if `largest` has grown.
  float (*weigh)(float* scores, int begin, int end, float scale, const float* key_scales,
                 const float* value_scales, Softmax& softmax);

  // x[0..dim) *= factor; dim is padded.
  void (*multiply)(float* x, int dim, float factor);

  // Copies a block in fp32: keys as [dim][kPositions], values as [kPositions][padded dim]. Vectors
  // are multiplied by `scales` unless null. Positions from `count` on become 0.
  void (*pack_keys)(const Vectors& keys, int count, const float* scales, float* packed);
  void (*pack_values)(const Vectors& values, int count, const float* scales, float* packed);

  // c[row][j] = factor[row] * c[row][j] + sum over i < inner of a[row][i] * b[i][j]; if `factor` is
  // null, the sum alone. Rows of a are a_stride numbers apart, rows of b and c `columns`, a
  // multiple of kLanesMost. Terms are added in the order of i, whatever the number of rows.
  void (*product)(const float* a, int64_t a_stride, int rows, int inner, const float* b,
                  int columns, const float* factor, float* c);

  // Writes one vector to the cache, rounded to the nearest number, ties to even. Returns the scale
  // of an int8 vector, else 0.
  float (*keep)(const float* x, int dim, Kept kept, void* at);
};

const AttentionKernels& plain_attention();
#if defined(__x86_64__)
const AttentionKernels& avx2_attention();
const AttentionKernels& avx512_attention();
#endif

}  // namespace mixtura
