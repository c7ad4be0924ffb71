// Writes the results of attention pieces to the output. A row with several splits gets partial
// results first, which are combined when the last split is done.
#pragma once

#include "attention/attention.h"

namespace mixtura {

class Results {
 public:
  Results(const AttentionPlan& plan, const LayerCache& cache, const TokenRows& rows,
          const Queries& queries, float* partials)
      : plan_(plan), cache_(cache), rows_(rows), queries_(queries), partials_(partials),
        copies_(queries.heads / cache.kv_heads) {}

  // The size of all partial results of a plan, in floats.
  static int64_t floats(const AttentionPlan& plan, const LayerCache& cache, int heads) {
    return plan.partials() * heads * stride(cache.value_dim);
  }

  // Stores the result of one query head of a row in a piece: `mixed` is the weighted sum of values.
  // The caller calls `end` after the last query head of a kv head.
  void put(const AttentionPlan::Piece& piece, int64_t row, int64_t head, const float* mixed,
           const Softmax& softmax) const;

  // Must be called when `put` has stored all query heads of a kv head. The thread that ends the
  // last unfinished split of a row combines all splits, in the order of positions.
  void end(const AttentionPlan::Piece& piece, int kv_head) const;

 private:
  static constexpr int64_t stride(int value_dim) { return padded(value_dim) + kLanesMost; }
  float* partial(int64_t number, int64_t head) const {
    return partials_ + (number * queries_.heads + head) * stride(cache_.value_dim);
  }
  float* out(int64_t row, int64_t head) const {
    return queries_.out + (row * queries_.heads + head) * cache_.value_dim;
  }
  float last_factor(const Softmax& softmax, int64_t head) const;
  void combine(int64_t row, int64_t head, int64_t first, int splits) const;

  const AttentionPlan& plan_;
  const LayerCache& cache_;
  const TokenRows& rows_;
  const Queries& queries_;
  float* const partials_;
  const int copies_;  // query heads per kv head
};

}  // namespace mixtura
