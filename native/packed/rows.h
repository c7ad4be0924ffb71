// Input rows of products, quantised to int8 in scratch memory, and the division of work among
// threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "machine/memory.h"
#include "machine/pool.h"
#include "packed/kernels.h"

namespace mixtura {

// Takes pieces of a memory region, one after another. Without a region it only counts bytes.
class Carver {
 public:
  explicit Carver(uint8_t* region) : region_(region) {}

  template <class Value>
  Value* take(int64_t count) {
    uint8_t* piece = region_ == nullptr ? nullptr : region_ + used_;
    used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(Value)), 64));
    return reinterpret_cast<Value*>(piece);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* region_;
  size_t used_ = 0;
};

// Rows quantised to int8. Each row is one Row, or two whose products are added: see `terms_for`.
struct ByteRows {
  int8_t* q;
  float* scale;
  int32_t* offset;
  int inputs;  // padded to whole blocks
  int span;
  int terms;

  static ByteRows in(Carver& carver, int64_t rows, int inputs, int span, int terms) {
    const int padded = static_cast<int>(round_up(inputs, kBlock));
    ByteRows made{};
    made.inputs = padded;
    made.span = span;
    made.terms = terms;
    made.q = carver.take<int8_t>(rows * terms * padded);
    made.scale = carver.take<float>(rows * terms * made.scales());
    made.offset = carver.take<int32_t>(rows * terms * made.groups());
    return made;
  }
  int scales() const { return static_cast<int>(round_up(inputs, span) / span); }
  int groups() const { return inputs / kGroup; }
  Row term(int64_t number, int term) const {
    const int64_t at = number * terms + term;
    return {q + at * inputs, scale + at * scales(), offset + at * groups()};
  }
  // Quantises x[count], which is part of a row and starts at input `from`, the first of a span.
  void put(const Kernels& kernels, int64_t number, int from, const float* x, int count,
           int weight_offset) const {
    put_term(kernels, number, 0, from, x, count, weight_offset);
    if (terms == 1) return;
    float left[kPrefillSpan];
    for (int start = 0; start < count; start += kPrefillSpan) {
      const int some = std::min(count - start, kPrefillSpan);
      take_first(term(number, 0), from + start, x + start, some, left);
      put_term(kernels, number, 1, from + start, left, some, weight_offset);
    }
  }

 private:
  void put_term(const Kernels& kernels, int64_t number, int which, int from, const float* x,
                int count, int weight_offset) const {
    const int64_t at = number * terms + which;
    kernels.quantise(x, count, span, weight_offset, q + at * inputs + from,
                     scale + at * scales() + from / span, offset + at * groups() + from / kGroup);
  }
  // Writes the remainder of x[count] after its first term to `left`. x starts at input `from`.
  void take_first(const Row& first, int from, const float* x, int count, float* left) const {
    for (int start = 0; start < count; start += span) {
      const float factor = first.scale[(from + start) / span];
      const int8_t* whole = first.q + from;
      for (int i = start; i < std::min(count, start + span); ++i) {
        left[i] = x[i] - factor * static_cast<float>(whole[i]);
      }
    }
  }
};

// Divides work items 0 .. total - 1 among threads. Claimed ranges become smaller towards the end,
// so that threads end at nearly the same time.
class Claims {
 public:
  struct Range {
    int64_t begin, end;
    bool empty() const { return begin >= end; }
  };

  Claims(std::atomic<int64_t>& next, int64_t total, int64_t least, int64_t most, int threads)
      : next_(next), total_(total), least_(least), most_(most), shares_(2 * threads) {}

  Range claim() {
    int64_t begin = next_.load(std::memory_order_relaxed);
    int64_t end;
    do {
      if (begin >= total_) return {total_, total_};
      int64_t size = (total_ - begin) / shares_;
      size = size < least_ ? least_ : (size > most_ ? most_ : size);
      end = begin + size < total_ ? begin + size : total_;
    } while (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
    return {begin, end};
  }

 private:
  std::atomic<int64_t>& next_;
  const int64_t total_, least_, most_, shares_;
};

}  // namespace mixtura
