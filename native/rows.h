// Rows of activations as the products take them, carved out of scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace mixtura {

// Takes memory from a region piece by piece; with no region it only counts.
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

// Rows quantised to int8, each a Row.
struct ByteRows {
  int8_t* q;
  float* scale;
  int32_t* offset;
  int inputs;  // padded to whole blocks
  int span;

  static ByteRows in(Carver& carver, int64_t rows, int inputs, int span) {
    const int padded = static_cast<int>(round_up(inputs, kBlock));
    ByteRows made{};
    made.inputs = padded;
    made.span = span;
    made.q = carver.take<int8_t>(rows * padded);
    made.scale = carver.take<float>(rows * made.scales());
    made.offset = carver.take<int32_t>(rows * made.groups());
    return made;
  }
  int scales() const { return static_cast<int>(round_up(inputs, span) / span); }
  int groups() const { return inputs / kGroup; }
  Row row(int64_t number) const {
    return {q + number * inputs, scale + number * scales(), offset + number * groups()};
  }
  // The part of a row from an input on, which begins a span.
  void put(const Kernels& kernels, int64_t number, int from, const float* x, int count,
           int weight_offset) const {
    kernels.quantise(x, count, span, weight_offset, q + number * inputs + from,
                     scale + number * scales() + from / span,
                     offset + number * groups() + from / kGroup);
  }
};

// Work from 0 to `total`, claimed in pieces that shrink towards the end, so that no thread waits
// long for the last one.
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
