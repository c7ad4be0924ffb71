// Attention of rows over the keys and values kept of their sequences: see
// src/mixtura/kernels/cached_attention.py, whose naive functions are the twins.
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

// One layer's cache: keys [slots, kv_heads, capacity, key_dim], values likewise. Where values are
// the first dims of their keys, both are one.
struct LayerCache {
  uint8_t* keys;
  uint8_t* values;
  float* key_scales;  // [slots, kv_heads, capacity], of int8 alone
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

// A token each: the slot of its sequence, and its position there.
struct TokenRows {
  int count;
  const int64_t* slot;
  const int64_t* position;
};

struct Queries {
  const float* q;  // [rows, heads, key_dim], `stride` from row to row
  int64_t stride;
  int heads;
  float scale;
  int64_t window;      // positions seen, the row's own included; 0: all before it
  const float* sinks;  // [heads], or null
  float* out;          // [rows, heads, value_dim]

  int64_t first_seen(int64_t position) const {
    return window > 0 && position >= window ? position - window + 1 : 0;
  }
};

// How the attention of some rows falls into pieces of work: the same for all layers of one window.
class AttentionPlan {
 public:
  // `rows` rows from `row` on that share a slot, and the positions begin..end-1 that this piece
  // goes through: one split of one row in decode and verify, all that any of the rows sees in prefill.
  struct Piece {
    int row, rows;
    int64_t begin, end;
    int splits;
    int64_t partial;  // where this split's result is kept until all are there
  };

  void make(const TokenRows& rows, const Queries& queries, int kv_heads, Phase phase);

  Phase phase() const { return phase_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  int64_t partials() const { return partials_; }
  // Of one piece, at most.
  int most_rows() const { return most_rows_; }
  // Splits that are still to come of a row and a kv head.
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

// The kernels of a set.
const AttentionKernels& attention_kernels(InstructionSet set);

Scratch attention_scratch(const AttentionPlan& plan, const LayerCache& cache, int heads,
                          InstructionSet set);

// Keeps each row's key and value: k [rows, kv_heads, key_dim], v likewise; v is null where values
// lie in keys. All threads of a team call it; a barrier has to follow.
void append(Team& team, const LayerCache& cache, const TokenRows& rows, const float* k,
            const float* v, InstructionSet set);

// One vector of one row and kv head, of either.
void keep_vector(const AttentionKernels& kernels, const LayerCache& cache, bool key, int64_t place,
                 const float* x);

// Writes queries.out. All threads of a team call it; there is no barrier at its end.
void attend(Team& team, const AttentionPlan& plan, const LayerCache& cache, const TokenRows& rows,
            const Queries& queries, InstructionSet set, uint8_t* shared, uint8_t* own);

}  // namespace mixtura
