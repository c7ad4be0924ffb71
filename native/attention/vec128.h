// Vectors of four floats, which every compiler and processor supports in some way.
#pragma once

#include <cstdint>
#include <cstring>

namespace mixtura {
namespace {

struct Vec {
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t Integers __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;

  static V zero() { return V{}; }
  static V all(float x) { return V{x, x, x, x}; }
  static V load(const float* x) {
    V v;
    std::memcpy(&v, x, sizeof v);
    return v;
  }
  static V load(const uint16_t* x) {
    return from(Integers{x[0] << 16, x[1] << 16, x[2] << 16, x[3] << 16});
  }
  static V load(const int8_t* x) {
    return V{static_cast<float>(x[0]), static_cast<float>(x[1]), static_cast<float>(x[2]),
             static_cast<float>(x[3])};
  }
  template <class Type>
  static V load_some(const Type* x, int count) {
    Type some[4] = {};
    std::memcpy(some, x, count * sizeof(Type));
    return load(some);
  }
  static void store(float* x, V v) { std::memcpy(x, &v, sizeof v); }

  static V add(V a, V b) { return a + b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  static V larger(V a, V b) { return a > b ? a : b; }
  static float largest(V v) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  static float sum(V v) { return (v[0] + v[1]) + (v[2] + v[3]); }
  static V sums(V (&x)[4]) {
    transpose(x);
    return (x[0] + x[1]) + (x[2] + x[3]);
  }
  static void transpose(V (&x)[4]) {
    float square[4][4];
    std::memcpy(square, x, sizeof square);
    for (int i = 0; i < 4; ++i) x[i] = V{square[0][i], square[1][i], square[2][i], square[3][i]};
  }
  // p * 2^n, with n in the low bits of `shifted`.
  static V times_power(V p, V shifted) { return from(bits(p) + (bits(shifted) << 23)); }
  static V zero_below(V x, float bound, V value) { return x < all(bound) ? zero() : value; }

 private:
  static V from(Integers x) {
    V v;
    std::memcpy(&v, &x, sizeof v);
    return v;
  }
  static Integers bits(V v) {
    Integers x;
    std::memcpy(&x, &v, sizeof x);
    return x;
  }
};

}  // namespace
}  // namespace mixtura
