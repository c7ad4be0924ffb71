#include "attention/tiles.h"

#include <algorithm>

namespace mixtura {

using amx::kBlockPositions;
using amx::kGroupQueries;
using amx::kLine;

namespace {

constexpr int kGroupBlock = kBlockPositions * kGroupQueries;
constexpr float kLog2 = 0.69314718055994531f;
constexpr int kAtOnce = 2;  // groups that are multiplied with the same loaded keys and values

int groups_of(int queries) { return (queries + kGroupQueries - 1) / kGroupQueries; }

}  // namespace

TileAttention::TileAttention(Carver& carver, int most, const LayerCache& cache,
                             const TokenRows& rows, const Queries& queries,
                             const Results& results)
    : cache_(cache), rows_(rows), queries_(queries), results_(results),
      copies_(queries.heads / cache.kv_heads), key_lines_(amx::lines(cache.key_dim)),
      value_lines_(amx::lines(cache.value_dim)) {
  const int groups = groups_of(most);
  groups_ = carver.take<Group>(groups);
  q_ = carver.take<uint16_t>(groups * q_floats());
  keys_ = carver.take<uint16_t>(int64_t{kBlockPositions} * key_lines_ * kLine);
  values_ = carver.take<uint16_t>(int64_t{kBlockPositions} * value_lines_ * kLine);
  scores_ = carver.take<float>(kAtOnce * kGroupBlock);
  weights_ = carver.take<uint16_t>(kAtOnce * kGroupBlock);
  mixed_ = carver.take<float>(groups * mixed_floats());
}

void TileAttention::compute(const AttentionPlan::Piece& piece, int kv_head,
                            const uint8_t* next) const {
  const int queries = piece.rows * copies_, groups = groups_of(queries);
  begin(piece, kv_head, groups);
  const int64_t from = piece.begin / kBlockPositions * kBlockPositions;
  for (int64_t start = from; start < piece.end; start += kBlockPositions) {
    block(piece, kv_head, start, groups, next);
  }
  for (int query = 0; query < queries; ++query) {
    const amx::GroupSoftmax& softmax = groups_[query / kGroupQueries].softmax;
    const int lane = query % kGroupQueries;
    float* mixed = mixed_ + int64_t{query} * value_lines_ * kLine;
    if (cache_.kept == Kept::bf16) amx::restore(mixed, value_lines_);
    results_.put(piece, piece.row + query / copies_, kv_head * copies_ + query % copies_, mixed,
                 {softmax.largest[lane] * kLog2, softmax.sum[lane]});
  }
  results_.end(piece, kv_head);
}

void TileAttention::begin(const AttentionPlan::Piece& piece, int kv_head, int groups) const {
  const int queries = piece.rows * copies_;
  for (int i = 0; i < groups * kGroupQueries; ++i) {
    Group& group = groups_[i / kGroupQueries];
    const int lane = i % kGroupQueries;
    group.softmax.largest[lane] = -__builtin_inff();
    group.softmax.sum[lane] = 0.0f;
    group.q[lane] = nullptr;
    group.first[lane] = group.end[lane] = 0;
    if (i >= queries) continue;
    const int64_t row = piece.row + i / copies_, head = kv_head * copies_ + i % copies_;
    group.q[lane] = queries_.q + row * queries_.stride + head * cache_.key_dim;
    // A piece may be a split, which has only some of the row's positions.
    group.first[lane] = std::max(queries_.first_seen(rows_.position[row]), piece.begin);
    group.end[lane] = std::min(rows_.position[row] + 1, piece.end);
  }
  for (int group = 0; group < groups; ++group) {
    groups_[group].started = false;
    amx::pack_queries(groups_[group].q, cache_.key_dim, q_ + group * q_floats());
  }
}

void TileAttention::block(const AttentionPlan::Piece& piece, int kv_head, int64_t start,
                          int groups, const uint8_t* next) const {
  const int count = static_cast<int>(std::min<int64_t>(piece.end - start, kBlockPositions));
  const int64_t place = cache_.place(rows_.slot[piece.row], kv_head, start);
  const Vectors values = cache_.values_at(place);
  int64_t stride;
  const uint16_t* keys = keys_of(place, start, count, &stride);
  const bool more = start + kBlockPositions < piece.end;
  const void* later = more ? cache_.keys_at(place + kBlockPositions).at : next;
  bool packed = false;
  for (int first = 0; first < groups; first += kAtOnce) {
    const int some = std::min(kAtOnce, groups - first);
    Group* own = groups_ + first;
    int seen = 0;
    for (int i = 0; i < some; ++i) seen = std::max(seen, own[i].sees(start, start + count));
    if (seen == 0) continue;
    const void* ahead = packed ? static_cast<const void*>(keys) : values.at;
    amx::scores(keys, stride, seen, q_ + first * q_floats(), key_lines_, some,
                static_cast<const uint8_t*>(ahead), scores_);
    for (int i = 0; i < some; ++i) {
      amx::weigh(scores_ + i * kGroupBlock, seen, queries_.scale, cache_.key_scales_at(place),
                 cache_.value_scales_at(place), own[i].softmax, weights_ + i * kGroupBlock);
      if (own[i].started) {
        float* mixed = mixed_ + (first + i) * mixed_floats();
        amx::multiply(mixed, value_lines_, own[i].softmax.factor);
      }
    }
    if (!packed) amx::pack_values(values, count, static_cast<const uint8_t*>(later), values_);
    packed = true;
    amx::mix(values_, seen, value_lines_, some, weights_, !own->started,
             mixed_ + first * mixed_floats());
    for (int i = 0; i < some; ++i) own[i].started = true;
  }
}

int TileAttention::Group::sees(int64_t start, int64_t stop) {
  int farthest = 0;
  for (int lane = 0; lane < kGroupQueries; ++lane) {
    const int64_t low = std::clamp(first[lane], start, stop);
    const int64_t high = std::clamp(end[lane], start, stop);
    softmax.low[lane] = static_cast<int>(low - start);
    softmax.high[lane] = static_cast<int>(high - start);
    if (low < high) farthest = std::max(farthest, softmax.high[lane]);
  }
  return farthest;
}

const uint16_t* TileAttention::keys_of(int64_t place, int64_t start, int count,
                                       int64_t* stride) const {
  const Vectors keys = cache_.keys_at(place);
  *stride = int64_t{key_lines_} * kLine;
  // Tiles are read whole, 32 positions at a time. So the cache can be read directly only if the
  // last tile ends within its capacity; scores of positions from `count` on are not used.
  if (cache_.kept == Kept::bf16 && *stride == cache_.key_dim &&
      start + (count + 31) / 32 * 32 <= cache_.capacity) {
    return static_cast<const uint16_t*>(keys.at);
  }
  amx::pack_keys(keys, count, keys_);
  return keys_;
}

}  // namespace mixtura
