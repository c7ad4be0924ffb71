// Attention with AMX tiles, in bf16, over caches of bf16 or int8.
#pragma once

#include "attention/amx.h"
#include "attention/results.h"

namespace mixtura {

class TileAttention {
 public:
  // Takes one thread's memory from the carver, for pieces of at most `most` queries.
  TileAttention(Carver& carver, int most, const LayerCache& cache, const TokenRows& rows,
                const Queries& queries, const Results& results);

  // Computes a piece; must be called between amx::configure() and amx::release(). `next` points to
  // the keys that this thread reads after the piece, for prefetching; or null.
  void compute(const AttentionPlan::Piece& piece, int kv_head, const uint8_t* next) const;

 private:
  // 16 queries that are multiplied together; lane i is query i.
  struct Group {
    amx::GroupSoftmax softmax;
    const float* q[amx::kGroupQueries];
    // The query attends to positions first .. end - 1.
    int64_t first[amx::kGroupQueries];
    int64_t end[amx::kGroupQueries];

    bool started;  // whether `mixed_` holds the values of an earlier block

    // Sets softmax.low and softmax.high for the block of positions start .. stop - 1. Returns the
    // number of positions up to the last to which any query attends, or 0 if there is none.
    int sees(int64_t start, int64_t stop);
  };

  void begin(const AttentionPlan::Piece& piece, int kv_head, int groups) const;
  void block(const AttentionPlan::Piece& piece, int kv_head, int64_t start, int groups,
             const uint8_t* next) const;
  const uint16_t* keys_of(int64_t place, int64_t start, int count, int64_t* stride) const;

  int64_t q_floats() const { return int64_t{key_lines_} * amx::kLine * amx::kGroupQueries; }
  int64_t mixed_floats() const { return int64_t{value_lines_} * amx::kLine * amx::kGroupQueries; }

  const LayerCache& cache_;
  const TokenRows& rows_;
  const Queries& queries_;
  const Results& results_;
  const int copies_, key_lines_, value_lines_;
  Group* groups_;
  uint16_t* q_;       // packed queries of all groups
  uint16_t* keys_;    // a block's keys, where tiles cannot be loaded from the cache itself
  uint16_t* values_;  // a block's values, in pairs of positions
  float* scores_;     // scores of two groups
  uint16_t* weights_;  // weights of two groups
  float* mixed_;      // weighted sums of values, of all groups
};

}  // namespace mixtura
