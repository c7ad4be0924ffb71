#include "machine/pool.h"

#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mixtura {
namespace {

// While a model computes, the next job starts within microseconds. Waking a sleeping thread takes
// tens of microseconds.
constexpr int kSpinsBeforeSleep = 20000;
// With fewer cores than threads, the thread that is waited for may need this core.
constexpr int kSpinsBeforeYield = 4000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
void spin_until(Condition done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < kSpinsBeforeYield) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

void Team::barrier() {
  if (threads > 1) pool_.arrive(threads);
}

std::atomic<int64_t>& Team::counter() {
  const uint32_t stage = stage_++;
  // A barrier separates any two stages, so no thread is four stages ahead or behind, and no thread
  // uses this counter.
  if (thread == 0) {
    pool_.counters_[(stage + 4) % Pool::kCounters].value.store(0, std::memory_order_relaxed);
  }
  return pool_.counters_[stage % Pool::kCounters].value;
}

Pool& Pool::shared() {
  static std::mutex making;
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(making);
  // After a fork the child has no worker threads. The old pool is not destroyed, because joining
  // its threads would wait for ever.
  if (pool == nullptr || owner != getpid()) {
    const unsigned cores = std::thread::hardware_concurrency();
    const int threads = pool != nullptr ? pool->threads() : static_cast<int>(cores ? cores : 1);
    pool = new Pool(threads);
    owner = getpid();
  }
  return *pool;
}

Pool::Pool(int threads) : threads_(threads) {}

Pool::~Pool() { stop(); }

void Pool::set_threads(int threads) {
  std::lock_guard<std::mutex> lock(busy_);
  if (threads == threads_) return;
  stop();
  threads_ = threads;
}

void Pool::borrow(const OpenMp& openmp) {
  std::lock_guard<std::mutex> lock(busy_);
  openmp_ = openmp;
}

void Pool::start() {
  leaving_.store(false);
  generation_.store(0);
  for (int thread = 1; thread < threads_; ++thread) {
    workers_.emplace_back([this, thread] { work(thread); });
  }
}

void Pool::stop() {
  if (workers_.empty()) return;
  leaving_.store(true);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void Pool::run(const Job& job) {
  std::lock_guard<std::mutex> lock(busy_);
  run_alone(job);
}

void Pool::run(const Scratch& scratch, const JobInMemory& job) {
  std::lock_guard<std::mutex> lock(busy_);
  workspace_.reserve(scratch.shared, scratch.own, threads_);
  run_alone([&](Team& team) { job(team, workspace_.shared(), workspace_.own(team.thread)); });
}

void Pool::run_alone(const Job& job) {
  for (Counter& counter : counters_) counter.value.store(0, std::memory_order_relaxed);
  if (threads_ > 1 && openmp_.parallel != nullptr && openmp_.usual_threads() == threads_) {
    return run_in_openmp(job);
  }
  if (workers_.empty()) start();
  job_ = &job;
  running_.store(threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  if (threads_ > 1) generation_.notify_all();
  Team team(*this, 0, threads_);
  job(team);
  spin_until([this] { return running_.load(std::memory_order_acquire) == 0; });
}

void Pool::run_in_openmp(const Job& job) {
  struct Given {
    Pool& pool;
    const Job& job;
  } given{*this, job};
  const auto body = [](void* address) {
    const Given& given = *static_cast<Given*>(address);
    // OpenMP may start fewer threads than requested: if it has a limit, or if the caller is in a
    // parallel region already.
    const OpenMp& openmp = given.pool.openmp_;
    Team team(given.pool, openmp.thread(), openmp.threads());
    given.job(team);
  };
  openmp_.parallel(body, &given, static_cast<unsigned>(threads_), 0);
}

void Pool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpinsBeforeSleep) {
        pause();
      } else {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
    ++seen;
    if (leaving_.load(std::memory_order_acquire)) return;
    Team team(*this, thread, threads_);
    (*job_)(team);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void Pool::arrive(int threads) {
  const uint32_t passed = passed_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.store(passed + 1, std::memory_order_release);
  } else {
    spin_until([this, passed] { return passed_.load(std::memory_order_acquire) != passed; });
  }
}

}  // namespace mixtura
