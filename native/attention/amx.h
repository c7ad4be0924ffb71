// Attention with Intel's AMX tiles: blocks of kBlockPositions positions times groups of 16 queries.
// Scores are keys times queries, so that keys are loaded in the cache's layout; a vector of scores
// has a lane for each query. Mixed values are weights times values, for which AMX needs the values
// of two positions interleaved.
#pragma once

#include <cstdint>

#include "attention/kernels.h"

namespace mixtura::amx {

constexpr int kGroupQueries = 16;
// A line is a row of a tile: 32 bf16 numbers.
constexpr int kLine = 32;
// A block is as long as a split of decode, so that decode writes the mixed values once.
constexpr int kBlockPositions = 256;

// The lines that a vector of `dim` numbers fills.
constexpr int lines(int dim) { return (dim + kLine - 1) / kLine; }

// The online softmax of a group of queries.
struct GroupSoftmax {
  float largest[kGroupQueries];  // largest score times log2(e)
  float sum[kGroupQueries];
  float factor[kGroupQueries];  // what AttentionKernels::weigh would return for the last block
  int low[kGroupQueries];       // the query attends to positions low .. high - 1 of the block
  int high[kGroupQueries];
};

// Packs a group's queries as [lines][16 pairs of dims][16 queries][2] bf16. q[query] is null if the
// group has fewer queries.
void pack_queries(const float* const* q, int dim, uint16_t* packed);

// Packs a block's keys as [kBlockPositions][lines * kLine] bf16. Numbers beyond `count` and dim are
// 0 up to whole tiles. Keys of int8 are not multiplied by their scales.
void pack_keys(const Vectors& keys, int count, uint16_t* packed);

// Packs a block's values as [kBlockPositions / 32][lines * 2][16 pairs of positions][16 dims][2]
// bf16, 0 beyond `count` and dim. Values of int8 are not multiplied by their scales. Values of bf16
// get another order of dims, which `restore` undoes. As many bytes as the values have are
// prefetched from `ahead`, unless it is null.
void pack_values(const Vectors& values, int count, const uint8_t* ahead, uint16_t* packed);

// Restores the order of dims in one query's mixed values. Needed only for a bf16 cache.
void restore(float* mixed, int dim_lines);

// Computes scores[group][kBlockPositions][16 queries] of one or two groups, for `count` positions.
// As many bytes as the keys have are prefetched from `ahead`.
void scores(const uint16_t* keys, int64_t key_stride, int count, const uint16_t* queries,
            int dim_lines, int groups, const uint8_t* ahead, float* scores);

// Turns one group's scores into weights [16 queries][kBlockPositions] bf16. Weights are 0 at
// positions to which a query does not attend, up to whole tiles. The scales are those of an int8
// cache, or null.
void weigh(float* scores, int count, float scale, const float* key_scales,
           const float* value_scales, GroupSoftmax& softmax, uint16_t* weights);

// mixed[query][lines * kLine] *= factor[query].
void multiply(float* mixed, int dim_lines, const float* factor);

// mixed[group * 16 + query][lines * kLine] += weights[group] times values. If `first`, `mixed` is
// set instead of added to.
void mix(const uint16_t* values, int count, int dim_lines, int groups, const uint16_t* weights,
         bool first, float* mixed);

}  // namespace mixtura::amx
