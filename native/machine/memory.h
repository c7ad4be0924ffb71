// Scratch memory for jobs, which one job after another reuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace mixtura {

// Memory that grows but never shrinks, since the next decode step needs as much.
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

  // Returns at least `size` bytes, aligned to a page. Earlier contents are undefined.
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

// The bytes that a job needs besides its operands: `shared` for all threads, `own` for each thread.
struct Scratch {
  size_t shared, own;
};

// The buffers for the scratch of one job at a time.
class Workspace {
 public:
  // Called before a job, so that the job allocates nothing.
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
