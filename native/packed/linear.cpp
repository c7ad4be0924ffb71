#include "packed/linear.h"

#include <algorithm>

namespace mixtura {
namespace {

constexpr int64_t kRowsAtOnce = 256;  // rows whose products fit into the L2 cache

template <class Products>
int64_t sums_of(int64_t rows) {
  return round_up(std::min(rows, kRowsAtOnce), Products::kRowTile) * kUnit;
}

template <class Products>
Scratch scratch_of(const Products& products, const Linear& linear, int64_t rows) {
  Carver shared(nullptr), own(nullptr);
  products.rows_in(shared, rows, linear.matrix.inputs);
  own.take<uint8_t>(static_cast<int64_t>(Products::unit_scratch(linear.matrix.inputs)));
  own.take<float>(sums_of<Products>(rows));
  return {shared.used(), own.used()};
}

void put_out(const float* products, int64_t rows, const Linear& linear, int unit, float* out,
             int64_t out_stride) {
  const int first = unit * kUnit;
  const int channels = std::min(kUnit, linear.matrix.outputs - first);
  for (int64_t row = 0; row < rows; ++row) {
    float* to = out + row * out_stride + first;
    const float* from = products + row * kUnit;
    if (linear.bias == nullptr) {
      for (int i = 0; i < channels; ++i) to[i] = from[i];
    } else {
      for (int i = 0; i < channels; ++i) to[i] = from[i] + linear.bias[first + i];
    }
  }
}

template <class Products>
void compute(Team& team, const Products& products, const Linear& linear, const float* x,
             int64_t x_stride, int64_t rows, uint8_t* shared, uint8_t* own, float* out,
             int64_t out_stride) {
  const Matrix& matrix = linear.matrix;
  Carver shared_carver(shared), own_carver(own);
  const auto taken = products.rows_in(shared_carver, rows, matrix.inputs);
  uint8_t* panel = own_carver.take<uint8_t>(
      static_cast<int64_t>(Products::unit_scratch(matrix.inputs)));
  float* sums = own_carver.take<float>(sums_of<Products>(rows));
  for (int64_t row = team.thread; row < rows; row += team.threads) {
    products.put(taken, row, 0, x + row * x_stride, matrix.inputs, matrix.offset());
  }
  auto& counter = team.counter();
  team.barrier();
  // With few rows memory limits the speed, so a thread claims long runs of consecutive units.
  Claims claims(counter, matrix.units(), rows < 16 ? 4 : 1, rows < 16 ? 64 : 8, team.threads);
  products.begin();
  Claims::Range range = claims.claim();
  while (!range.empty()) {
    const Claims::Range later = claims.claim();
    const uint8_t* end = matrix.unit(static_cast<int>(range.end));
    const Ahead ahead{end, later.empty() ? matrix.unit(static_cast<int>(range.begin))
                                         : matrix.unit(static_cast<int>(later.begin)),
                      distance_for(rows, matrix.bits)};
    // kRowsAtOnce rows stay in the cache while they are multiplied with all claimed units.
    for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
      const int64_t count = std::min(rows - first, kRowsAtOnce);
      for (int64_t unit = range.begin; unit < range.end; ++unit) {
        const int number = static_cast<int>(unit);
        products.multiply(matrix, matrix.unit(number), taken, Numbered{nullptr}, first, count,
                          ahead, panel, sums);
        put_out(sums, count, linear, number, out + first * out_stride, out_stride);
      }
    }
    range = later;
  }
  products.end();
}

}  // namespace

Scratch linear_scratch(const Linear& linear, int64_t rows, Phase phase, InstructionSet set) {
  return with_products(phase, set, linear.matrix.bits, [&](const auto& products) {
    return scratch_of(products, linear, rows);
  });
}

void linear(Team& team, const Linear& linear, const float* x, int64_t x_stride, int64_t rows,
            Phase phase, InstructionSet set, uint8_t* shared, uint8_t* own, float* out,
            int64_t out_stride) {
  with_products(phase, set, linear.matrix.bits, [&](const auto& products) {
    compute(team, products, linear, x, x_stride, rows, shared, own, out, out_stride);
  });
}

}  // namespace mixtura
