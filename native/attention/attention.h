// Attention of query rows over a cache of keys and values. The naive functions of the Python module
// mixtura.kernels.cached_attention are the reference.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/kernels.h"
#include "machine/pool.h"
#include "packed/linear.h"
#include "packed/products.h"

namespace mixtura {

// One layer's cache: keys [slots, kv_heads, capacity, key_dim] and values [slots, kv_heads,
// capacity, value_dim]. A slot holds one sequence. If `values` equals `keys`, each value is the
// first value_dim numbers of its key.
struct LayerCache {
  uint8_t* keys;
  uint8_t* values;
  float* key_scales;  // [slots, kv_heads, capacity], only for int8
  float* value_scales;
  Kept kept;
  int kv_heads;
  int64_t capacity;
  int key_dim;
  int value_dim;

  bool values_in_keys() const { return values == keys; }
  int64_t value_stride() const { return values_in_keys() ? key_dim : value_dim; }
  int64_t place(int64_t slot, int head, int64_t position) const {
    return (slot * kv_heads + head) * capacity + position;
  }
  Vectors keys_at(int64_t place) const {
    return {keys + place * key_dim * kept_bytes(kept), kept, key_dim, key_dim};
  }
  Vectors values_at(int64_t place) const {
    return {values + place * value_stride() * kept_bytes(kept), kept, value_stride(), value_dim};
  }
  const float* key_scales_at(int64_t place) const {
    return kept == Kept::int8 ? key_scales + place : nullptr;
  }
  const float* value_scales_at(int64_t place) const {
    return kept == Kept::int8 ? value_scales + place : nullptr;
  }
};

// A batch of tokens: for each, the slot of its sequence and its position in the sequence.
struct TokenRows {
  int count;
  const int64_t* slot;
  const int64_t* position;
};

struct Queries {
  const float* q;      // [rows, heads, key_dim]; rows are `stride` numbers apart
  int64_t stride;
  int heads;
  float scale;
  // A row attends to this many positions, up to and including its own; 0: to all of them.
  int64_t window;
  const float* sinks;  // [heads] attention-sink logits, or null
  float* out;          // [rows, heads, value_dim]

  // The first position to which a row at `position` attends.
  int64_t first_seen(int64_t position) const {
    return window > 0 && position >= window ? position - window + 1 : 0;
  }
};

// The division of a batch's attention into pieces of work. Layers with the same window share a
// plan.
class AttentionPlan {
 public:
  // Rows row .. row + rows - 1, which share a slot, over positions begin .. end - 1. In decode and
  // verify a piece is one split of one row; in prefill it has all positions to which any of its
  // rows attends.
  struct Piece {
    int row, rows;
    int64_t begin, end;
    int splits;       // number of splits of the row
    int64_t partial;  // index of this split's partial result, if splits > 1
  };

  void make(const TokenRows& rows, const Queries& queries, int kv_heads, Phase phase);

  Phase phase() const { return phase_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  int64_t partials() const { return partials_; }
  // The most rows of any piece.
  int most_rows() const { return most_rows_; }
  // The number of unfinished splits of a row and a kv head.
  std::atomic<int>& left(int row, int kv_head) const { return left_[row * kv_heads_ + kv_head]; }

 private:
  void split_row(const TokenRows& rows, const Queries& queries, int row);
  void gather_rows(const TokenRows& rows, const Queries& queries);

  Phase phase_ = Phase::decode;
  int kv_heads_ = 0;
  int64_t partials_ = 0;
  int most_rows_ = 0;
  std::vector<Piece> pieces_;
  std::unique_ptr<std::atomic<int>[]> left_;
  int64_t counted_ = 0;
};

const AttentionKernels& attention_kernels(InstructionSet set);

Scratch attention_scratch(const AttentionPlan& plan, const LayerCache& cache, int heads,
                          InstructionSet set);

// Writes each row's key and value to the cache: k [rows, kv_heads, key_dim] and v [rows, kv_heads,
// value_dim]. v is null if values are part of the keys. All threads of a team call it; a barrier
// has to follow.
void append(Team& team, const LayerCache& cache, const TokenRows& rows, const float* k,
            const float* v, InstructionSet set);

// Writes one key (if `key`) or one value to the cache; see LayerCache::place.
void keep_vector(const AttentionKernels& kernels, const LayerCache& cache, bool key, int64_t place,
                 const float* x);

// Computes queries.out. All threads of a team call it; it has no barrier at its end.
void attend(Team& team, const AttentionPlan& plan, const LayerCache& cache, const TokenRows& rows,
            const Queries& queries, InstructionSet set, uint8_t* shared, uint8_t* own);

}  // namespace mixtura
