#include <algorithm>

#include "attention/attention.h"

namespace mixtura {
namespace {

// The most queries of a piece in prefill. They share each block of keys and values.
constexpr int kQueries = 128;

}  // namespace

void AttentionPlan::make(const TokenRows& rows, const Queries& queries, int kv_heads,
                         Phase phase) {
  phase_ = phase;
  kv_heads_ = kv_heads;
  partials_ = 0;
  most_rows_ = 0;
  pieces_.clear();
  if (!reads_prompts(phase)) {
    const int64_t counted = int64_t{rows.count} * kv_heads;
    if (counted > counted_) {
      left_ = std::make_unique<std::atomic<int>[]>(counted);
      counted_ = counted;
    }
    for (int row = 0; row < rows.count; ++row) split_row(rows, queries, row);
    if (phase == Phase::verify) {
      // Pieces that read the same split of a sequence become neighbours, so that the split is still
      // in the CPU cache for the later pieces.
      std::stable_sort(pieces_.begin(), pieces_.end(), [&](const Piece& a, const Piece& b) {
        const int64_t one = rows.slot[a.row], other = rows.slot[b.row];
        return one != other ? one < other : a.begin / kSplit < b.begin / kSplit;
      });
    }
  } else {
    gather_rows(rows, queries);
  }
  for (const Piece& piece : pieces_) most_rows_ = std::max(most_rows_, piece.rows);
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

void AttentionPlan::gather_rows(const TokenRows& rows, const Queries& queries) {
  const int most = std::max(1, kQueries / (queries.heads / kv_heads_));
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
  // The largest pieces come first, so that no thread works on a large piece after the others end.
  std::stable_sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
    return (a.end - a.begin) * a.rows > (b.end - b.begin) * b.rows;
  });
}

}  // namespace mixtura
