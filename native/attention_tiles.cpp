#include "attention_tiles.h"

#include <algorithm>

namespace mixtura {

using amx::kGroupQueries;
using amx::kGroups;
using amx::kLine;

TileAttention::TileAttention(Carver& carver, int most, const LayerCache& cache,
                             const TokenRows& rows, const Queries& queries)
    : cache_(cache), rows_(rows), queries_(queries), copies_(queries.heads / cache.kv_heads),
      key_lines_(amx::lines(cache.key_dim)), value_lines_(amx::lines(cache.value_dim)) {
  const int64_t pairs = (most + kGroups * kGroupQueries - 1) / (kGroups * kGroupQueries);
  const int64_t lanes = pairs * kGroups * kGroupQueries;
  groups_ = carver.take<Group>(pairs * kGroups);
  q_ = carver.take<uint16_t>(lanes * key_lines_ * kLine);
  keys_ = carver.take<uint16_t>(int64_t{kPositions} * key_lines_ * kLine);
  values_ = carver.take<uint16_t>(int64_t{kPositions} * value_lines_ * kLine);
  scores_ = carver.take<float>(kGroups * kPositions * kGroupQueries);
  weights_ = carver.take<uint16_t>(kGroups * kPositions * kGroupQueries);
  mixed_ = carver.take<float>(lanes * value_lines_ * kLine);
}

void TileAttention::prefill(const AttentionPlan::Piece& piece, int kv_head) const {
  const int groups = begin(piece, kv_head);
  const int64_t slot = rows_.slot[piece.row];
  const int64_t q_group = int64_t{key_lines_} * kLine * kGroupQueries;
  const int64_t mixed_group = int64_t{value_lines_} * kLine * kGroupQueries;
  constexpr int kBlock = kPositions * kGroupQueries;
  const int64_t from = piece.begin / kPositions * kPositions;
  for (int64_t start = from; start < piece.end; start += kPositions) {
    const int count = static_cast<int>(std::min<int64_t>(piece.end - start, kPositions));
    const int64_t place = cache_.place(slot, kv_head, start);
    int64_t stride;
    const uint16_t* keys = keys_of(slot, kv_head, start, count, &stride);
    amx::pack_values(cache_.values_at(place), count, values_);
    for (int group = 0; group < groups; group += kGroups) {
      bool any = false;
      for (int i = 0; i < kGroups; ++i) any |= groups_[group + i].sees(start, start + count);
      if (!any) continue;
      amx::scores(keys, stride, count, q_ + group * q_group, key_lines_, scores_);
      for (int i = 0; i < kGroups; ++i) {
        amx::GroupSoftmax& softmax = groups_[group + i].softmax;
        if (amx::weigh(scores_ + i * kBlock, count, queries_.scale, cache_.key_scales_at(place),
                       cache_.value_scales_at(place), softmax, weights_ + i * kBlock)) {
          amx::multiply(mixed_ + (group + i) * mixed_group, value_lines_, softmax.factor);
        }
      }
      amx::mix(values_, value_lines_, weights_, mixed_ + group * mixed_group);
    }
  }
  for (int group = 0; group < groups; ++group) finish(group);
}

int TileAttention::begin(const AttentionPlan::Piece& piece, int kv_head) const {
  const int queries = piece.rows * copies_;
  const int pairs = (queries + kGroups * kGroupQueries - 1) / (kGroups * kGroupQueries);
  for (int i = 0; i < pairs * kGroups * kGroupQueries; ++i) {
    Group& group = groups_[i / kGroupQueries];
    const int lane = i % kGroupQueries;
    group.softmax.largest[lane] = -__builtin_inff();
    group.softmax.sum[lane] = 0.0f;
    group.q[lane] = nullptr;
    group.out[lane] = nullptr;
    group.first[lane] = group.end[lane] = 0;
    if (i >= queries) continue;
    const int64_t row = piece.row + i / copies_, head = kv_head * copies_ + i % copies_;
    group.q[lane] = queries_.q + row * queries_.stride + head * cache_.key_dim;
    group.out[lane] = queries_.out + (row * queries_.heads + head) * cache_.value_dim;
    group.first[lane] = queries_.first_seen(rows_.position[row]);
    group.end[lane] = rows_.position[row] + 1;
    group.sink[lane] = queries_.sinks == nullptr ? 0.0f : queries_.sinks[head];
  }
  for (int group = 0; group < pairs * kGroups; ++group) {
    amx::pack_queries(groups_[group].q, cache_.key_dim,
                      q_ + int64_t{group} * key_lines_ * kLine * kGroupQueries);
  }
  std::fill(mixed_, mixed_ + int64_t{pairs} * kGroups * kGroupQueries * value_lines_ * kLine, 0.0f);
  return pairs * kGroups;
}

bool TileAttention::Group::sees(int64_t start, int64_t stop) {
  bool any = false;
  for (int lane = 0; lane < kGroupQueries; ++lane) {
    const int64_t low = std::clamp(first[lane], start, stop);
    const int64_t high = std::clamp(end[lane], start, stop);
    softmax.low[lane] = static_cast<int>(low - start);
    softmax.high[lane] = static_cast<int>(high - start);
    any |= low < high;
  }
  return any;
}

const uint16_t* TileAttention::keys_of(int64_t slot, int kv_head, int64_t start, int count,
                                       int64_t* stride) const {
  const Vectors keys = cache_.keys_at(cache_.place(slot, kv_head, start));
  *stride = int64_t{key_lines_} * kLine;
  // Whole tiles are read: of a whole block, or of places whose scores nobody looks at.
  if (cache_.kept == Kept::bf16 && *stride == cache_.key_dim &&
      start + kPositions <= cache_.capacity) {
    return static_cast<const uint16_t*>(keys.at);
  }
  amx::pack_keys(keys, count, keys_);
  return keys_;
}

void TileAttention::finish(int number) const {
  const Group& group = groups_[number];
  float factor[kGroupQueries];
  for (int lane = 0; lane < kGroupQueries; ++lane) {
    const Softmax softmax{group.softmax.largest[lane], group.softmax.sum[lane]};
    factor[lane] = last_factor(softmax, queries_.sinks == nullptr ? nullptr : &group.sink[lane]);
  }
  amx::put(mixed_ + int64_t{number} * value_lines_ * kLine * kGroupQueries, cache_.value_dim,
           factor, group.out);
}

}  // namespace mixtura
