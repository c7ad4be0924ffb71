#include "attention/attention.h"

#include <algorithm>

#include "attention/results.h"
#if defined(__x86_64__)
#include "attention/tiles.h"
#include "machine/amx.h"
#endif

namespace mixtura {
namespace {

constexpr float kNothing = -__builtin_inff();

int64_t block_start(int64_t position) { return position / kPositions * kPositions; }

// One thread's scratch memory for a piece.
struct Own {
  float* q;         // [queries, padded key dim]
  float* scores;    // [queries, kPositions]
  float* mixed;     // [queries, padded value dim]
  float* factor;    // [queries]
  float* keys;      // block packed by pack_keys, for prefill
  float* values;    // block packed by pack_values, for prefill
  Softmax* softmax;  // [queries]

  static Own in(Carver& carver, int queries, const LayerCache& cache, bool packs) {
    Own own{};
    own.q = carver.take<float>(int64_t{queries} * padded(cache.key_dim));
    own.scores = carver.take<float>(int64_t{queries} * kPositions);
    own.mixed = carver.take<float>(int64_t{queries} * padded(cache.value_dim));
    own.factor = carver.take<float>(queries);
    own.softmax = carver.take<Softmax>(queries);
    if (packs) {
      own.keys = carver.take<float>(int64_t{kPositions} * cache.key_dim);
      own.values = carver.take<float>(int64_t{kPositions} * padded(cache.value_dim));
    }
    return own;
  }
};

class Attention {
 public:
  Attention(const LayerCache& cache, const TokenRows& rows, const Queries& queries,
            const Results& results, InstructionSet set)
      : cache_(cache), rows_(rows), queries_(queries), results_(results),
        kernels_(attention_kernels(set)), copies_(queries.heads / cache.kv_heads),
        q_stride_(padded(cache.key_dim)), v_stride_(padded(cache.value_dim)) {}

  // `next` points to the keys that this thread reads after the piece, for prefetching; or null.
  void decode(const AttentionPlan::Piece& piece, int kv_head, const uint8_t* next,
              const Own& own) const {
    begin(piece, kv_head, own);
    const int64_t slot = rows_.slot[piece.row];
    for (int64_t start = block_start(piece.begin); start < piece.end; start += kPositions) {
      const int low = static_cast<int>(std::max(piece.begin - start, int64_t{0}));
      const int high = static_cast<int>(std::min(piece.end - start, int64_t{kPositions}));
      const int64_t place = cache_.place(slot, kv_head, start);
      const Vectors values = cache_.values_at(place + low);
      kernels_.scores(cache_.keys_at(place + low), high - low, own.q, q_stride_, copies_,
                      own.scores + low, static_cast<const uint8_t*>(values.at));
      for (int head = 0; head < copies_; ++head) {
        const float factor = weigh(own, head, low, high, place);
        if (factor != 1.0f) kernels_.multiply(own.mixed + head * v_stride_, v_stride_, factor);
      }
      const bool more = start + kPositions < piece.end;
      const void* ahead = more ? cache_.keys_at(place + kPositions).at : next;
      kernels_.mix(values, high - low, own.scores + low, copies_, own.mixed, v_stride_,
                   static_cast<const uint8_t*>(ahead));
    }
    put(piece, kv_head, own);
  }

  void prefill(const AttentionPlan::Piece& piece, int kv_head, const Own& own) const {
    begin(piece, kv_head, own);
    const int queries = piece.rows * copies_;
    const int64_t slot = rows_.slot[piece.row];
    for (int64_t start = block_start(piece.begin); start < piece.end; start += kPositions) {
      const int count = static_cast<int>(std::min(piece.end - start, int64_t{kPositions}));
      const int64_t place = cache_.place(slot, kv_head, start);
      kernels_.pack_keys(cache_.keys_at(place), count, cache_.key_scales_at(place), own.keys);
      kernels_.pack_values(cache_.values_at(place), count, cache_.value_scales_at(place),
                           own.values);
      kernels_.product(own.q, q_stride_, queries, cache_.key_dim, own.keys, kPositions, nullptr,
                       own.scores);
      for (int query = 0; query < queries; ++query) {
        const int64_t position = rows_.position[piece.row + query / copies_];
        const int64_t first = queries_.first_seen(position);
        const int low = static_cast<int>(std::clamp<int64_t>(first - start, 0, kPositions));
        const int high = static_cast<int>(std::clamp<int64_t>(position + 1 - start, 0, kPositions));
        own.factor[query] = kernels_.weigh(own.scores + query * kPositions, low, high,
                                           queries_.scale, nullptr, nullptr, own.softmax[query]);
      }
      kernels_.product(own.scores, kPositions, queries, count, own.values, v_stride_, own.factor,
                       own.mixed);
    }
    put(piece, kv_head, own);
  }

 private:
  void begin(const AttentionPlan::Piece& piece, int kv_head, const Own& own) const {
    const int dim = cache_.key_dim;
    for (int query = 0; query < piece.rows * copies_; ++query) {
      const int64_t row = piece.row + query / copies_, head = kv_head * copies_ + query % copies_;
      const float* q = queries_.q + row * queries_.stride + head * dim;
      std::copy(q, q + dim, own.q + query * q_stride_);
      std::fill(own.q + query * q_stride_ + dim, own.q + (query + 1) * q_stride_, 0.0f);
      own.softmax[query] = {kNothing, 0.0f};
    }
    std::fill(own.mixed, own.mixed + int64_t{piece.rows} * copies_ * v_stride_, 0.0f);
  }

  float weigh(const Own& own, int query, int low, int high, int64_t place) const {
    return kernels_.weigh(own.scores + query * kPositions, low, high, queries_.scale,
                          cache_.key_scales_at(place), cache_.value_scales_at(place),
                          own.softmax[query]);
  }

  void put(const AttentionPlan::Piece& piece, int kv_head, const Own& own) const {
    for (int query = 0; query < piece.rows * copies_; ++query) {
      results_.put(piece, piece.row + query / copies_, kv_head * copies_ + query % copies_,
                   own.mixed + query * v_stride_, own.softmax[query]);
    }
    results_.end(piece, kv_head);
  }

  const LayerCache& cache_;
  const TokenRows& rows_;
  const Queries& queries_;
  const Results& results_;
  const AttentionKernels& kernels_;
  const int copies_;  // query heads that share a key
  const int q_stride_, v_stride_;
};

// Whether attention uses AMX tiles, which multiply 16 queries in the time of one. In decode with
// few query heads per kv head, memory limits the speed; then vector kernels are used, which keep
// queries and weights in fp32.
bool in_tiles(const AttentionPlan& plan, const LayerCache& cache, int heads, InstructionSet set) {
  if (set != InstructionSet::amx || cache.kept == Kept::fp32) return false;
  const int worth = cache.kept == Kept::bf16 ? 2 : 8;
  return reads_prompts(plan.phase()) || heads >= worth * cache.kv_heads;
}

}  // namespace

const AttentionKernels& attention_kernels(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx2) return avx2_attention();
  if (set != InstructionSet::plain) return avx512_attention();
#endif
  (void)set;
  return plain_attention();
}

Scratch attention_scratch(const AttentionPlan& plan, const LayerCache& cache, int heads,
                          InstructionSet set) {
  Carver shared(nullptr), own(nullptr);
  shared.take<float>(Results::floats(plan, cache, heads));
  const int most = plan.most_rows() * (heads / cache.kv_heads);
#if defined(__x86_64__)
  if (in_tiles(plan, cache, heads, set)) {
    Queries queries{};
    queries.heads = heads;
    const TokenRows rows{};
    const Results results(plan, cache, rows, queries, nullptr);
    TileAttention(own, most, cache, rows, queries, results);
    return {shared.used(), own.used()};
  }
#endif
  (void)set;
  Own::in(own, most, cache, reads_prompts(plan.phase()));
  return {shared.used(), own.used()};
}

void keep_vector(const AttentionKernels& kernels, const LayerCache& cache, bool key, int64_t place,
                 const float* x) {
  const Vectors at = key ? cache.keys_at(place) : cache.values_at(place);
  const float scale = kernels.keep(x, at.dim, cache.kept, const_cast<void*>(at.at));
  if (cache.kept == Kept::int8) (key ? cache.key_scales : cache.value_scales)[place] = scale;
}

void append(Team& team, const LayerCache& cache, const TokenRows& rows, const float* k,
            const float* v, InstructionSet set) {
  const AttentionKernels& kernels = attention_kernels(set);
  for (int64_t i = team.thread; i < int64_t{rows.count} * cache.kv_heads; i += team.threads) {
    const int64_t row = i / cache.kv_heads;
    const int head = static_cast<int>(i % cache.kv_heads);
    const int64_t place = cache.place(rows.slot[row], head, rows.position[row]);
    keep_vector(kernels, cache, true, place, k + i * cache.key_dim);
    if (v != nullptr) keep_vector(kernels, cache, false, place, v + i * cache.value_dim);
  }
}

void attend(Team& team, const AttentionPlan& plan, const LayerCache& cache, const TokenRows& rows,
            const Queries& queries, InstructionSet set, uint8_t* shared, uint8_t* own) {
  auto& counter = team.counter();
  Carver shared_carver(shared), own_carver(own);
  float* partials = shared_carver.take<float>(Results::floats(plan, cache, queries.heads));
  const Results results(plan, cache, rows, queries, partials);
  const int most = plan.most_rows() * (queries.heads / cache.kv_heads);
  const bool prefill = reads_prompts(plan.phase());
  const int64_t pieces = static_cast<int64_t>(plan.pieces().size());
  const int64_t total = pieces * cache.kv_heads;
  // Decode takes all pieces of one kv head before the next head, as in the cache's memory. Prefill
  // takes each piece for all kv heads before the next piece, because the largest pieces come first.
  const auto piece_of = [&](int64_t i) -> const AttentionPlan::Piece& {
    return plan.pieces()[prefill ? i / cache.kv_heads : i % pieces];
  };
  const auto head_of = [&](int64_t i) {
    return static_cast<int>(prefill ? i % cache.kv_heads : i / pieces);
  };
  // Claims pieces and calls compute(piece, kv head, next) for each. `next` points to the keys of
  // the thread's next piece, or is null.
  const auto each = [&](const auto& compute) {
    int64_t later = counter.fetch_add(1, std::memory_order_relaxed);
    while (later < total) {
      const int64_t now = later;
      later = counter.fetch_add(1, std::memory_order_relaxed);
      const uint8_t* next = nullptr;
      if (later < total) {
        const AttentionPlan::Piece& piece = piece_of(later);
        const int64_t start = block_start(piece.begin);
        const int64_t place = cache.place(rows.slot[piece.row], head_of(later), start);
        next = static_cast<const uint8_t*>(cache.keys_at(place).at);
      }
      compute(piece_of(now), head_of(now), next);
    }
  };
#if defined(__x86_64__)
  if (in_tiles(plan, cache, queries.heads, set)) {
    const TileAttention attention(own_carver, most, cache, rows, queries, results);
    amx::configure();
    each([&](const auto& piece, int head, const uint8_t* next) {
      attention.compute(piece, head, next);
    });
    amx::release();
    return;
  }
#endif
  const Own mine = Own::in(own_carver, most, cache, prefill);
  const Attention attention(cache, rows, queries, results, set);
  each([&](const auto& piece, int head, const uint8_t* next) {
    if (prefill) {
      attention.prefill(piece, head, mine);
    } else {
      attention.decode(piece, head, next, mine);
    }
  });
}

}  // namespace mixtura
