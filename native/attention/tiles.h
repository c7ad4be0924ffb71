// Attention on processors with AMX: in bf16, over caches of bf16 and int8.
#pragma once

#include "attention/amx.h"
#include "attention/results.h"

namespace mixtura {

class TileAttention {
 public:
  // Takes a thread's own memory from the carver, for pieces of `most` queries.
  TileAttention(Carver& carver, int most, const LayerCache& cache, const TokenRows& rows,
                const Queries& queries, const Results& results);

  // Between amx::configure() and release(). `next` are the keys with which this thread goes on.
  void compute(const AttentionPlan::Piece& piece, int kv_head, const uint8_t* next) const;

 private:
  struct Group {
    amx::GroupSoftmax softmax;
    const float* q[amx::kGroupQueries];
    int64_t first[amx::kGroupQueries];  // positions seen
    int64_t end[amx::kGroupQueries];

    bool started;  // whether a block has been mixed

    // How far into the block any of them sees; 0 for not at all.
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
  uint16_t* keys_;    // of a block, where the cache's own cannot be read
  uint16_t* values_;  // of a block, in pairs
  float* scores_;     // of two groups
  uint16_t* weights_;
  float* mixed_;      // of all groups
};

}  // namespace mixtura
