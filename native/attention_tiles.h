// Prefill's attention on processors with AMX: in bf16, as caches of bf16 and int8 are kept.
#pragma once

#include "attention.h"
#include "attention_amx.h"

namespace mixtura {

class TileAttention {
 public:
  // Takes a thread's own memory from the carver; `queries` of one piece at most.
  TileAttention(Carver& carver, int most, const LayerCache& cache, const TokenRows& rows,
                const Queries& queries);

  // Within amx::configure() and release().
  void prefill(const AttentionPlan::Piece& piece, int kv_head) const;

 private:
  struct Group {
    amx::GroupSoftmax softmax;
    const float* q[amx::kGroupQueries];
    float* out[amx::kGroupQueries];
    int64_t first[amx::kGroupQueries];  // positions seen
    int64_t end[amx::kGroupQueries];
    float sink[amx::kGroupQueries];

    bool sees(int64_t start, int64_t stop);
  };

  int begin(const AttentionPlan::Piece& piece, int kv_head) const;
  const uint16_t* keys_of(int64_t slot, int kv_head, int64_t start, int count,
                          int64_t* stride) const;
  void finish(int group) const;

  const LayerCache& cache_;
  const TokenRows& rows_;
  const Queries& queries_;
  const int copies_, key_lines_, value_lines_;
  Group* groups_;
  uint16_t* q_;       // packed queries of all groups
  uint16_t* keys_;    // of a block, where the cache's own cannot be read
  uint16_t* values_;  // of a block, turned
  float* scores_;     // of amx::kGroups groups
  uint16_t* weights_;
  float* mixed_;      // of all groups
};

}  // namespace mixtura
