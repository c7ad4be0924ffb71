// The threads that kernels compute in: torch's, where it lends them, or our own.
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

// The functions of an OpenMP runtime that torch computes with; empty where it has none.
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

  // Returns once every thread has come here; what they wrote before is seen after.
  void barrier();

  // A counter at 0 that all threads share, from which to claim work. Between one call and the
  // next there has to be a barrier.
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

  // The process's own, made on first use and again after a fork.
  static Pool& shared();

  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Waits for a job that runs; further ones use that many threads.
  void set_threads(int threads);

  // Further jobs run in torch's own threads while both want as many: torch's go on spinning for
  // milliseconds after each of its operations, on the cores that threads of ours would need.
  void borrow(const OpenMp& openmp);

  // Runs job(team) once in each thread, the caller's among them. A job must not throw, nor start
  // another; a second caller waits.
  void run(const Job& job);

  // The same, with memory for all threads together and for each, as many as run.
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
