#include "limits/limits.h"

#include <atomic>
#include <chrono>
#include <cstring>

#include "machine/pool.h"

namespace mixtura {
namespace {

uint64_t read_plain(const uint8_t* bytes, int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    sum += word;
  }
  return sum;
}

uint64_t read_one(const uint8_t* bytes, int64_t count) {
#if defined(__x86_64__)
  if (has(InstructionSet::avx512)) return limits::read_avx512(bytes, count);
  if (has(InstructionSet::avx2)) return limits::read_avx2(bytes, count);
#endif
  return read_plain(bytes, count);
}

double clock() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

template <class Spin>
double rate(Spin spin, double each_round, double seconds) {
  Pool& pool = Pool::shared();
  constexpr int64_t kRounds = 20000;
  double rounds = 0;
  const double began = clock();
  while (clock() - began < seconds) {
    pool.run([&](Team&) { spin(kRounds); });
    rounds += static_cast<double>(kRounds) * pool.threads();
  }
  return rounds * each_round / (clock() - began);
}

}  // namespace

uint64_t read_bytes(const uint8_t* bytes, int64_t count) {
  constexpr int64_t kPart = 1 << 20;
  std::atomic<uint64_t> sum{0};
  Pool::shared().run([&](Team& team) {
    auto& next = team.counter();
    uint64_t own = 0;
    for (int64_t at; (at = next.fetch_add(kPart, std::memory_order_relaxed)) < count;) {
      own += read_one(bytes + at, count - at < kPart ? count - at : kPart);
    }
    sum += own;
  });
  return sum;
}

double peak_int8(InstructionSet set, double seconds) {
#if defined(__x86_64__)
  switch (set) {
    case InstructionSet::amx: return rate(limits::spin_int8_amx, 4 * 16 * 16 * 64, seconds);
    case InstructionSet::avx512: return rate(limits::spin_int8_avx512, 16 * 64, seconds);
    case InstructionSet::avx2: return rate(limits::spin_int8_avx2, 8 * 32, seconds);
    case InstructionSet::plain: break;
  }
#endif
  (void)set;
  (void)seconds;
  return 0.0;
}

double peak_bfloat(double seconds) {
#if defined(__x86_64__)
  if (has(InstructionSet::amx)) return rate(limits::spin_bfloat_amx, 4 * 16 * 16 * 32, seconds);
#endif
  (void)seconds;
  return 0.0;
}

}  // namespace mixtura
