// Vectors of the widest instruction set for which the including file is compiled. They use the
// vector extension of GCC and Clang, since plain loops over arrays would keep sums in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace mixtura {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Words __attribute__((vector_size(kLanes * 4)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <class Lanes>
inline Lanes load(const void* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Floats all(float x) { return x - Floats{}; }

inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// A step of the transposition exchanges squares of kStep lanes between two rows that are kStep
// apart. For a lane of the first row, this is the index of its source among the lanes of both rows.
template <int kStep>
constexpr int of_lower(int lane) {
  return lane & kStep ? kLanes + lane - kStep : lane;
}

template <int kStep, class Lanes, int... kLane>
inline void exchange(Lanes& low, Lanes& high, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  const Lanes a = __builtin_shufflevector(low, high, of_lower<kStep>(kLane)...);
  high = __builtin_shufflevector(low, high, of_lower<kStep>(kLane) + kStep...);
#else
  const Lanes a = __builtin_shuffle(low, high, Words{of_lower<kStep>(kLane)...});
  high = __builtin_shuffle(low, high, Words{(of_lower<kStep>(kLane) + kStep)...});
#endif
  low = a;
}

// Exchanges lane j of x[i] and lane i of x[j].
template <int kStep = 1, class Lanes>
inline void transpose(Lanes (&x)[kLanes]) {
  _Pragma("GCC unroll 16") for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    exchange<kStep>(x[i], x[i + kStep], std::make_integer_sequence<int, kLanes>());
  }
  if constexpr (2 * kStep < kLanes) transpose<2 * kStep>(x);
}

}  // namespace
}  // namespace mixtura
