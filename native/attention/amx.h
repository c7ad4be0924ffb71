// Attention in Intel's matrix tiles: blocks of kBlockPositions positions with groups of 16 queries.
// Scores are keys times queries, which stand in the lanes of vectors, so that keys are read as they
// lie; mixed values are weights times values, whose positions are paired first.
#pragma once

#include <cstdint>

#include "attention/kernels.h"

namespace mixtura::amx {

constexpr int kGroupQueries = 16;
// Numbers of one line of a tile.
constexpr int kLine = 32;
// As many as decode has in a split: what is mixed is then written once.
constexpr int kBlockPositions = 256;

constexpr int lines(int dim) { return (dim + kLine - 1) / kLine; }

// The online softmax of a group.
struct GroupSoftmax {
  float largest[kGroupQueries];  // as a power of 2: times log2 e
  float sum[kGroupQueries];
  float factor[kGroupQueries];  // of the block just weighed, see AttentionKernels::weigh
  int low[kGroupQueries];       // positions of the block that each query sees: low .. high - 1
  int high[kGroupQueries];
};

// q[query], null for none, as pairs of dims: [lines][16 pairs][16 queries][2] bf16.
void pack_queries(const float* const* q, int dim, uint16_t* packed);

// Keys of a block as [kBlockPositions][lines * kLine] bf16, zero beyond count and dim up to whole
// tiles; int8 unscaled.
void pack_keys(const Vectors& keys, int count, uint16_t* packed);

// Values of a block as [kBlockPositions / 32][lines * 2][16 pairs][16 dims][2] bf16, zero beyond
// count and dim; int8 unscaled. Dims of bf16 are left in the order that `restore` ends. As many
// bytes are fetched from `ahead` on, unless it is null.
void pack_values(const Vectors& values, int count, const uint8_t* ahead, uint16_t* packed);

// The dims of one query's mixed values in their own order, where they are of bf16.
void restore(float* mixed, int dim_lines);

// scores[group][kBlockPositions][16] of one or two groups, for `count` positions. As many bytes as
// the keys have are fetched from `ahead` on.
void scores(const uint16_t* keys, int64_t key_stride, int count, const uint16_t* queries,
            int dim_lines, int groups, const uint8_t* ahead, float* scores);

// One group's scores into weights [16 queries][kBlockPositions] bf16, zero where nothing is seen,
// up to whole tiles. Scales are those of an int8 cache, or null.
void weigh(float* scores, int count, float scale, const float* key_scales,
           const float* value_scales, GroupSoftmax& softmax, uint16_t* weights);

// mixed[query][lines * kLine] *= factor[query].
void multiply(float* mixed, int dim_lines, const float* factor);

// mixed[group * 16 + query][lines * kLine] += weights[group] times values; `first` sets it.
void mix(const uint16_t* values, int count, int dim_lines, int groups, const uint16_t* weights,
         bool first, float* mixed);

}  // namespace mixtura::amx
