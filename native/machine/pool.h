// The threads in which kernels run: torch's OpenMP threads where possible, else threads of the
// pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "machine/memory.h"

namespace mixtura {

class Pool;

// Functions of torch's OpenMP runtime: GOMP_parallel, omp_get_thread_num, omp_get_num_threads and
// omp_get_max_threads. All are null if torch has none.
struct OpenMp {
  void (*parallel)(void (*body)(void*), void* given, unsigned threads, unsigned flags) = nullptr;
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;
  int (*usual_threads)() = nullptr;
};

// One thread of a job. All threads of a job call `barrier` and `counter` in the same order.
class Team {
 public:
  Team(Pool& pool, int thread, int threads) : thread(thread), threads(threads), pool_(pool) {}

  // Returns once every thread has called it. Memory written before the barrier is visible to all
  // threads after it.
  void barrier();

  // Returns a counter that all threads share and that starts at 0; threads claim work from it.
  // There has to be a barrier between two calls.
  std::atomic<int64_t>& counter();

  const int thread;
  const int threads;

 private:
  Pool& pool_;
  uint32_t stage_ = 0;
};

class Pool {
 public:
  using Job = std::function<void(Team&)>;
  using JobInMemory = std::function<void(Team&, uint8_t* shared, uint8_t* own)>;

  // The process's pool, created on first use and again after a fork.
  static Pool& shared();

  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Waits for the running job; later jobs use `threads` threads.
  void set_threads(int threads);

  // Makes later jobs run in torch's threads, as long as torch uses as many threads as the pool.
  // After each operation torch's threads spin for milliseconds, on cores that other threads would
  // need.
  void borrow(const OpenMp& openmp);

  // Runs job(team) once in each thread, including the caller's. A job must not throw and must not
  // start another job. A second caller waits.
  void run(const Job& job);

  // Runs job(team, shared, own) likewise, with the requested memory for all threads and for each
  // thread.
  void run(const Scratch& scratch, const JobInMemory& job);

 private:
  friend class Team;
  static constexpr int kCounters = 8;
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };

  void run_alone(const Job& job);
  void run_in_openmp(const Job& job);
  void start();
  void stop();
  void work(int thread);
  void arrive(int threads);

  int threads_;
  std::mutex busy_;
  OpenMp openmp_;
  Workspace workspace_;
  std::vector<std::thread> workers_;
  const Job* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> passed_{0};
  alignas(64) std::atomic<bool> leaving_{false};
  Counter counters_[kCounters];
};

}  // namespace mixtura
