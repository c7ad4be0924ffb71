// e^x for vectors. Before it includes this, a file defines its vector type `Vec` in an unnamed
// namespace.
#pragma once

namespace mixtura {
namespace {

using V = Vec::V;

// e^x for x <= 0, with an error of at most 2 units in the last place; exactly 0 for x < -87.
inline V exponential(V x) {
  // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the low bits.
  const V magic = Vec::all(12582912.0f);
  const V shifted = Vec::fma(x, Vec::all(1.44269504088896341f), magic);
  const V whole = Vec::add(shifted, Vec::all(-12582912.0f));
  // ln 2 is split into two constants, so that x - whole * ln 2 keeps its digits.
  V rest = Vec::fma(whole, Vec::all(-0.693359375f), x);
  rest = Vec::fma(whole, Vec::all(2.12194440e-4f), rest);
  V p = Vec::all(1.9875691500e-4f);
  p = Vec::fma(p, rest, Vec::all(1.3981999507e-3f));
  p = Vec::fma(p, rest, Vec::all(8.3334519073e-3f));
  p = Vec::fma(p, rest, Vec::all(4.1665795894e-2f));
  p = Vec::fma(p, rest, Vec::all(1.6666665459e-1f));
  p = Vec::fma(p, rest, Vec::all(5.0000001201e-1f));
  p = Vec::fma(p, Vec::mul(rest, rest), Vec::add(rest, Vec::all(1.0f)));
  return Vec::zero_below(x, -87.0f, Vec::times_power(p, shifted));
}

}  // namespace
}  // namespace mixtura
