#include "attention.h"

#include <algorithm>
#include <cmath>

#if defined(__x86_64__)
#include "amx.h"
#include "attention_tiles.h"
#endif

namespace mixtura {
namespace {

constexpr float kNothing = -__builtin_inff();
// Queries that share a block of keys and values in prefill.
constexpr int kQueries = 128;

int rows_at_once(int copies) { return std::max(1, kQueries / copies); }

int64_t block_start(int64_t position) { return position / kPositions * kPositions; }

// A partial result: the mixed values of one head, and the softmax that they belong to.
constexpr int64_t partial_floats(int value_dim) { return padded(value_dim) + kLanesMost; }

// What one thread computes a piece in.
struct Own {
  float* q;         // [queries, padded key dim]
  float* scores;    // [queries, kPositions]
  float* mixed;     // [queries, padded value dim]
  float* factor;    // [queries]
  float* keys;      // packed block
  float* values;
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
  Attention(const AttentionPlan& plan, const LayerCache& cache, const TokenRows& rows,
            const Queries& queries, InstructionSet set, float* partials)
      : plan_(plan), cache_(cache), rows_(rows), queries_(queries),
        kernels_(attention_kernels(set)), partials_(partials),
        copies_(queries.heads / cache.kv_heads), q_stride_(padded(cache.key_dim)),
        v_stride_(padded(cache.value_dim)) {}

  void decode(const AttentionPlan::Piece& piece, int kv_head, const Own& own) const {
    begin(piece, kv_head, own);
    const int64_t slot = rows_.slot[piece.row];
    for (int64_t start = block_start(piece.begin); start < piece.end; start += kPositions) {
      const int low = static_cast<int>(std::max(piece.begin - start, int64_t{0}));
      const int high = static_cast<int>(std::min(piece.end - start, int64_t{kPositions}));
      const int64_t place = cache_.place(slot, kv_head, start);
      kernels_.scores(cache_.keys_at(place + low), high - low, own.q, q_stride_, copies_,
                      own.scores + low);
      for (int head = 0; head < copies_; ++head) {
        const float factor = weigh(own, head, low, high, place);
        if (factor != 1.0f) kernels_.multiply(own.mixed + head * v_stride_, v_stride_, factor);
      }
      kernels_.mix(cache_.values_at(place + low), high - low, own.scores + low, copies_, own.mixed,
                   v_stride_);
    }
    if (piece.splits == 1) {
      for (int head = 0; head < copies_; ++head) {
        put(piece.row, kv_head * copies_ + head, own.mixed + head * v_stride_, own.softmax[head]);
      }
    } else {
      keep_partial(piece, kv_head, own);
    }
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
    for (int query = 0; query < queries; ++query) {
      put(piece.row + query / copies_, kv_head * copies_ + query % copies_,
          own.mixed + query * v_stride_, own.softmax[query]);
    }
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

  void put(int64_t row, int64_t head, const float* mixed, const Softmax& softmax) const {
    const float* sink = queries_.sinks == nullptr ? nullptr : queries_.sinks + head;
    const float factor = last_factor(softmax, sink);
    float* out = queries_.out + (row * queries_.heads + head) * cache_.value_dim;
    for (int c = 0; c < cache_.value_dim; ++c) out[c] = mixed[c] * factor;
  }

  float* partial(int64_t number, int64_t head) const {
    return partials_ + (number * queries_.heads + head) * partial_floats(cache_.value_dim);
  }

  // The thread that brings the last split of a row combines all, in their order.
  void keep_partial(const AttentionPlan::Piece& piece, int kv_head, const Own& own) const {
    for (int head = 0; head < copies_; ++head) {
      float* kept = partial(piece.partial, kv_head * copies_ + head);
      std::copy(own.mixed + head * v_stride_, own.mixed + (head + 1) * v_stride_, kept);
      kept[v_stride_] = own.softmax[head].largest;
      kept[v_stride_ + 1] = own.softmax[head].sum;
    }
    std::atomic<int>& left = plan_.left(piece.row, kv_head);
    if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    left.store(piece.splits, std::memory_order_relaxed);
    // A row's splits stand one after the other, and begin with that of its first position.
    const int64_t position = rows_.position[piece.row];
    const int64_t split = piece.begin / kSplit - queries_.first_seen(position) / kSplit;
    for (int head = 0; head < copies_; ++head) {
      combine(piece.row, kv_head * copies_ + head, piece.partial - split, piece.splits, own);
    }
  }

  void combine(int64_t row, int64_t head, int64_t first, int splits, const Own& own) const {
    Softmax softmax{kNothing, 0.0f};
    for (int split = 0; split < splits; ++split) {
      softmax.largest = std::max(softmax.largest, partial(first + split, head)[v_stride_]);
    }
    std::fill(own.mixed, own.mixed + v_stride_, 0.0f);
    for (int split = 0; split < splits; ++split) {
      const float* part = partial(first + split, head);
      const float factor = std::exp(part[v_stride_] - softmax.largest);
      softmax.sum += part[v_stride_ + 1] * factor;
      for (int c = 0; c < cache_.value_dim; ++c) own.mixed[c] += part[c] * factor;
    }
    put(row, head, own.mixed, softmax);
  }

  const AttentionPlan& plan_;
  const LayerCache& cache_;
  const TokenRows& rows_;
  const Queries& queries_;
  const AttentionKernels& kernels_;
  float* const partials_;
  const int copies_;  // query heads that share a key
  const int q_stride_, v_stride_;
};

int queries_of(const AttentionPlan& plan, int copies) {
  int rows = 0;
  for (const auto& piece : plan.pieces()) rows = std::max(rows, piece.rows);
  return rows * copies;
}

bool in_tiles(const AttentionPlan& plan, const LayerCache& cache, InstructionSet set) {
  return plan.phase() == Phase::prefill && set == InstructionSet::amx && cache.kept != Kept::fp32;
}

}  // namespace

float last_factor(const Softmax& softmax, const float* sink) {
  if (sink == nullptr) return 1.0f / softmax.sum;
  const float largest = std::max(softmax.largest, *sink);
  const float own = std::exp(softmax.largest - largest);
  return own / (softmax.sum * own + std::exp(*sink - largest));
}

void AttentionPlan::make(const TokenRows& rows, const Queries& queries, int kv_heads,
                         Phase phase) {
  phase_ = phase;
  kv_heads_ = kv_heads;
  partials_ = 0;
  pieces_.clear();
  if (phase == Phase::decode) {
    const int64_t counted = int64_t{rows.count} * kv_heads;
    if (counted > counted_) {
      left_ = std::make_unique<std::atomic<int>[]>(counted);
      counted_ = counted;
    }
    for (int row = 0; row < rows.count; ++row) split_row(rows, queries, row);
    return;
  }
  const int most = rows_at_once(queries.heads / kv_heads);
  for (int row = 0; row < rows.count;) {
    Piece piece{row, 0, rows.position[row], 0, 1, 0};
    while (piece.rows < most && row < rows.count && rows.slot[row] == rows.slot[piece.row]) {
      piece.begin = std::min(piece.begin, queries.first_seen(rows.position[row]));
      piece.end = std::max(piece.end, rows.position[row] + 1);
      ++piece.rows;
      ++row;
    }
    pieces_.push_back(piece);
  }
  // The longest first, so that no thread is left alone with one at the end.
  std::stable_sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
    return (a.end - a.begin) * a.rows > (b.end - b.begin) * b.rows;
  });
}

void AttentionPlan::split_row(const TokenRows& rows, const Queries& queries, int row) {
  const int64_t end = rows.position[row] + 1, begin = queries.first_seen(end - 1);
  const int splits = static_cast<int>((end - 1) / kSplit - begin / kSplit + 1);
  for (int split = 0; split < splits; ++split) {
    const int64_t start = (begin / kSplit + split) * kSplit;
    pieces_.push_back({row, 1, std::max(begin, start), std::min(end, start + kSplit), splits,
                       partials_ + split});
  }
  if (splits == 1) return;
  partials_ += splits;
  for (int head = 0; head < kv_heads_; ++head) {
    left(row, head).store(splits, std::memory_order_relaxed);
  }
}

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
  shared.take<float>(plan.partials() * heads * partial_floats(cache.value_dim));
  const int queries = queries_of(plan, heads / cache.kv_heads);
#if defined(__x86_64__)
  if (in_tiles(plan, cache, set)) {
    const Queries none{nullptr, 0, heads, 0.0f, 0, nullptr, nullptr};
    TileAttention(own, queries, cache, TokenRows{}, none);
    return {shared.used(), own.used()};
  }
#endif
  (void)set;
  Own::in(own, queries, cache, plan.phase() == Phase::prefill);
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
  const int copies = queries.heads / cache.kv_heads;
  float* partials = shared_carver.take<float>(plan.partials() * queries.heads *
                                              partial_floats(cache.value_dim));
  const int64_t pieces = static_cast<int64_t>(plan.pieces().size());
  const auto each = [&](const auto& compute) {
    // Head by head in decode, as the cache lies; in prefill the longest pieces of all heads first.
    const bool by_head = plan.phase() == Phase::decode;
    for (;;) {
      const int64_t next = counter.fetch_add(1, std::memory_order_relaxed);
      if (next >= pieces * cache.kv_heads) return;
      const int64_t piece = by_head ? next % pieces : next / cache.kv_heads;
      const int64_t head = by_head ? next / pieces : next % cache.kv_heads;
      compute(plan.pieces()[piece], static_cast<int>(head));
    }
  };
#if defined(__x86_64__)
  if (in_tiles(plan, cache, set)) {
    const TileAttention attention(own_carver, queries_of(plan, copies), cache, rows, queries);
    amx::configure();
    each([&](const auto& piece, int head) { attention.prefill(piece, head); });
    amx::release();
    return;
  }
#endif
  const bool prefill = plan.phase() == Phase::prefill;
  const Own mine = Own::in(own_carver, queries_of(plan, copies), cache, prefill);
  const Attention attention(plan, cache, rows, queries, set, partials);
  each([&](const auto& piece, int head) {
    if (prefill) {
      attention.prefill(piece, head, mine);
    } else {
      attention.decode(piece, head, mine);
    }
  });
}

}  // namespace mixtura
