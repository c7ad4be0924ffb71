// Memory that jobs work in, kept from one to the next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace mixtura {

// Memory that grows and is kept, since a decode step needs the same again.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }

  // At least `size` bytes, on a boundary of 64; what was there is gone.
  uint8_t* reserve(size_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = 0;
      size = (size + kPage - 1) / kPage * kPage;
      data_ = static_cast<uint8_t*>(std::aligned_alloc(kPage, size));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = size;
    }
    return data_;
  }

 private:
  static constexpr size_t kPage = 4096;

  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// What a job needs besides its operands, in bytes: all threads together, and each.
struct Scratch {
  size_t shared, own;
};

// Scratch for one job after another.
class Workspace {
 public:
  // Before the job: nothing is allocated within.
  void reserve(size_t shared, size_t own, int threads) {
    shared_ = shared_buffer_.reserve(shared);
    if (own_buffers_.size() < static_cast<size_t>(threads)) own_buffers_.resize(threads);
    own_.resize(threads);
    for (int thread = 0; thread < threads; ++thread) own_[thread] = own_buffers_[thread].reserve(own);
  }
  uint8_t* shared() const { return shared_; }
  uint8_t* own(int thread) const { return own_[thread]; }

 private:
  Buffer shared_buffer_;
  std::vector<Buffer> own_buffers_;
  uint8_t* shared_ = nullptr;
  std::vector<uint8_t*> own_;
};

}  // namespace mixtura
