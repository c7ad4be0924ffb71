#include "attention/results.h"

#include <algorithm>
#include <cmath>

namespace mixtura {

void Results::put(const AttentionPlan::Piece& piece, int64_t row, int64_t head, const float* mixed,
                  const Softmax& softmax) const {
  if (piece.splits > 1) {
    float* kept = partial(piece.partial, head);
    std::copy_n(mixed, cache_.value_dim, kept);
    kept[padded(cache_.value_dim)] = softmax.largest;
    kept[padded(cache_.value_dim) + 1] = softmax.sum;
    return;
  }
  const float factor = last_factor(softmax, head);
  float* to = out(row, head);
  for (int c = 0; c < cache_.value_dim; ++c) to[c] = mixed[c] * factor;
}

float Results::last_factor(const Softmax& softmax, int64_t head) const {
  if (queries_.sinks == nullptr) return 1.0f / softmax.sum;
  const float sink = queries_.sinks[head], largest = std::max(softmax.largest, sink);
  const float own = std::exp(softmax.largest - largest);
  return own / (softmax.sum * own + std::exp(sink - largest));
}

void Results::end(const AttentionPlan::Piece& piece, int kv_head) const {
  if (piece.splits == 1) return;
  std::atomic<int>& left = plan_.left(piece.row, kv_head);
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  // The next layer uses the same plan and counts again.
  left.store(piece.splits, std::memory_order_relaxed);
  // Partial results of a row are consecutive, in the order of positions; `split` is the index of
  // this piece's split within the row.
  const int64_t first = queries_.first_seen(rows_.position[piece.row]);
  const int64_t split = piece.begin / kSplit - first / kSplit;
  for (int head = kv_head * copies_; head < (kv_head + 1) * copies_; ++head) {
    combine(piece.row, head, piece.partial - split, piece.splits);
  }
}

void Results::combine(int64_t row, int64_t head, int64_t first, int splits) const {
  const int dim = cache_.value_dim, tail = padded(dim);
  Softmax softmax{-__builtin_inff(), 0.0f};
  for (int split = 0; split < splits; ++split) {
    softmax.largest = std::max(softmax.largest, partial(first + split, head)[tail]);
  }
  float* to = out(row, head);
  std::fill_n(to, dim, 0.0f);
  for (int split = 0; split < splits; ++split) {
    const float* part = partial(first + split, head);
    const float factor = std::exp(part[tail] - softmax.largest);
    softmax.sum += part[tail + 1] * factor;
    for (int c = 0; c < dim; ++c) to[c] += part[c] * factor;
  }
  const float factor = last_factor(softmax, head);
  for (int c = 0; c < dim; ++c) to[c] *= factor;
}

}  // namespace mixtura
