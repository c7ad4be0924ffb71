// Attention in Intel's matrix tiles: blocks of kPositions positions with groups of 16 queries, which
// stand in the lanes of vectors. Scores are keys times queries and mixed values are values times
// weights, so that neither keys nor results ever have to be turned, values alone.
#pragma once

#include <cstdint>

#include "attention_kernels.h"

namespace mixtura::amx {

constexpr int kGroupQueries = 16;
// Groups that one call computes: they share the tiles of keys and values.
constexpr int kGroups = 2;
// Numbers of one line of a tile.
constexpr int kLine = 32;

constexpr int lines(int dim) { return (dim + kLine - 1) / kLine; }

// The online softmax of a group.
struct GroupSoftmax {
  float largest[kGroupQueries];
  float sum[kGroupQueries];
  float factor[kGroupQueries];  // of the block just weighed, see AttentionKernels::weigh
  int low[kGroupQueries];       // positions of the block that each query sees: low .. high - 1
  int high[kGroupQueries];
};

// q[query], null for none, as pairs of dims: [lines][16 pairs][16 queries][2] bf16.
void pack_queries(const float* const* q, int dim, uint16_t* packed);

// Keys of a block as [kPositions][lines * kLine] bf16, zero beyond count and dim; int8 unscaled.
void pack_keys(const Vectors& keys, int count, uint16_t* packed);

// Values of a block as [lines * kLine][kPositions] bf16, zero beyond count and dim; int8 unscaled.
void pack_values(const Vectors& values, int count, uint16_t* packed);

// scores[group][kPositions][16], from packed queries of kGroups groups, for `count` positions.
void scores(const uint16_t* keys, int64_t key_stride, int count, const uint16_t* queries,
            int dim_lines, float* scores);

// One group's scores into weights [kPositions / 2][16 queries][2] bf16, zero where nothing is seen.
// Scales are those of an int8 cache, or null. Gives whether any factor is not 1.
bool weigh(const float* scores, int count, float scale, const float* key_scales,
           const float* value_scales, GroupSoftmax& softmax, uint16_t* weights);

// mixed[lines * kLine][16] *= factor[query].
void multiply(float* mixed, int dim_lines, const float* factor);

// mixed[group][lines * kLine][16] += values times weights[group].
void mix(const uint16_t* values, int dim_lines, const uint16_t* weights, float* mixed);

// out[query][dim] = mixed times factor[query], for queries whose `out` is not null.
void put(const float* mixed, int dim, const float* factor, float* const* out);

}  // namespace mixtura::amx
