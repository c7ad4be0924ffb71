// E experts; w_in and w_out are an expert's first and second matrix.
#include "packed/experts.h"

#include <algorithm>

namespace mixtura {
namespace {

constexpr int64_t kRowsAtOnce = 256;  // rows whose hidden values fit into the L2 cache

// The routed rows sorted by expert, and in the router's order within an expert. Each expert's rows
// begin at a multiple of `multiple`; sorted places between two experts are unused.
struct Order {
  int64_t* start;    // [E + 1] the place of an expert's first row
  int32_t* rows;     // [E] the number of an expert's rows
  int32_t* active;   // the experts that have rows, ascending
  int32_t* source;   // sorted row -> router's row
  int32_t* place;    // router's row -> sorted row, or -1 if the router chose no expert
  int32_t* token;    // sorted row -> token
  int64_t* num_active;

  static int64_t most(int64_t num_experts, int64_t rows, int multiple) {
    return rows + std::min(num_experts, rows) * (multiple - 1);
  }

  static Order in(Carver& carver, int64_t num_experts, int64_t rows, int multiple) {
    const int64_t places = most(num_experts, rows, multiple);
    return {carver.take<int64_t>(num_experts + 1), carver.take<int32_t>(num_experts),
            carver.take<int32_t>(num_experts),     carver.take<int32_t>(places),
            carver.take<int32_t>(rows),            carver.take<int32_t>(places),
            carver.take<int64_t>(1)};
  }

  void sort(const Routed& routed, int64_t num_experts, int multiple) const {
    std::fill(rows, rows + num_experts, 0);
    for (int64_t row = 0; row < routed.rows; ++row) {
      if (routed.expert[row] < num_experts) ++rows[routed.expert[row]];
    }
    *num_active = 0;
    start[0] = 0;
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      if (rows[expert] > 0) active[(*num_active)++] = static_cast<int32_t>(expert);
      start[expert + 1] = start[expert] + round_up(rows[expert], multiple);
      rows[expert] = 0;
    }
    for (int64_t row = 0; row < routed.rows; ++row) {
      const int64_t expert = routed.expert[row];
      place[row] = -1;
      if (expert >= num_experts) continue;
      const int64_t at = start[expert] + rows[expert]++;
      place[row] = static_cast<int32_t>(at);
      source[at] = static_cast<int32_t>(row);
      token[at] = static_cast<int32_t>(routed.token[row]);
    }
  }
};

template <class Products>
class Layer {
 public:
  using Rows = typename Products::Rows;

  Layer(const Products& products, const Experts& experts, const float* x, const Routed& routed,
        uint8_t* shared_memory, uint8_t* own_memory, float* y)
      : products_(products), experts_(experts), x_(x), routed_(routed), y_(y),
        per_unit_(is_gated(experts.activation) ? kTile : kUnit),
        units_at_once_(std::max(products.span(), kBlock) / per_unit_) {
    Carver shared(shared_memory), own(own_memory);
    const int64_t places = Order::most(experts.num_experts, routed.rows, Products::kRowTile);
    const int64_t given = Products::kGathers ? places : routed.tokens;
    order_ = Order::in(shared, experts.num_experts, routed.rows, Products::kRowTile);
    x_rows_ = products.rows_in(shared, given, experts.width);
    h_rows_ = products.rows_in(shared, places, experts.expert_width);
    panel_ = own.take<uint8_t>(static_cast<int64_t>(
        std::max(Products::unit_scratch(experts.width),
                 Products::unit_scratch(experts.expert_width))));
    sums_ = own.take<float>(kRowsAtOnce * kUnit);
    hidden_ = own.take<float>(kRowsAtOnce * hidden_stride());
    scratch_ = {shared.used(), own.used()};
  }

  Scratch scratch() const { return scratch_; }

  void compute(Team& team) const {
    auto& first = team.counter();
    if (team.thread == 0) order_.sort(routed_, experts_.num_experts, Products::kRowTile);
    if constexpr (Products::kGathers) team.barrier();
    take_in(team);
    team.barrier();
    products_.begin();
    to_hidden(team, first);
    auto& second = team.counter();
    team.barrier();
    to_output(team, second);
    products_.end();
  }

 private:
  int hidden_stride() const { return units_at_once_ * per_unit_; }

  // Quantises the input rows. Without kGathers each token's row is quantised once. With kGathers,
  // an expert's rows must be consecutive in memory, so a token's row is quantised once for each of
  // its experts, one directly after another while the row is in the CPU cache.
  void take_in(Team& team) const {
    const int offset = experts_.in().offset();
    const auto put = [&](int64_t place, int64_t token) {
      products_.put(x_rows_, place, 0, x_ + token * experts_.width, experts_.width, offset);
    };
    if constexpr (Products::kGathers) {
      const int64_t rows = routed_.rows, end = rows * (team.thread + 1) / team.threads;
      for (int64_t row = rows * team.thread / team.threads; row < end; ++row) {
        if (order_.place[row] >= 0) put(order_.place[row], routed_.token[row]);
      }
    } else {
      for (int64_t token = team.thread; token < routed_.tokens; token += team.threads) {
        put(token, token);
      }
    }
  }

  // Consecutive units of one expert.
  struct Run {
    int64_t active;  // index in order_.active
    int first, count;
  };

  void to_hidden(Team& team, std::atomic<int64_t>& counter) const {
    const int units = experts_.in().units();
    const int64_t steps = (units + units_at_once_ - 1) / units_at_once_;
    const int64_t total = *order_.num_active * steps;
    const bool few = routed_.rows < 16 * *order_.num_active;
    Claims claims(counter, total, 1, few ? 8 : 4, team.threads);
    const auto begin_of = [&](int64_t step) {
      const Matrix matrix = experts_.in(order_.active[step / steps]);
      return matrix.unit(static_cast<int>(step % steps) * units_at_once_);
    };
    Claims::Range range = claims.claim();
    while (!range.empty()) {
      const Claims::Range later = claims.claim();
      for (int64_t step = range.begin; step < range.end;) {
        // The claimed steps of one expert are computed as one run, since their weights are
        // consecutive in memory.
        const int64_t end = std::min(range.end, (step / steps + 1) * steps);
        const int64_t next = end < range.end ? end : later.empty() ? step : later.begin;
        const Matrix matrix = experts_.in(order_.active[step / steps]);
        const int first = static_cast<int>(step % steps) * units_at_once_;
        const int last = std::min(units, first + static_cast<int>(end - step) * units_at_once_);
        hidden_of(Run{step / steps, first, last - first}, matrix.unit(last), begin_of(next));
        step = end;
      }
      range = later;
    }
  }

  void hidden_of(const Run& run, const uint8_t* end, const uint8_t* next) const {
    const int64_t expert = order_.active[run.active];
    const Matrix matrix = experts_.in(expert);
    const int64_t start = order_.start[expert], rows = order_.rows[expert];
    const Numbered numbers{Products::kGathers ? nullptr : order_.token};
    const Ahead ahead{end, next, distance_for(rows, matrix.bits)};
    const int offset = experts_.out().offset();
    for (int step = 0; step < run.count; step += units_at_once_) {
      const int units = std::min(units_at_once_, run.count - step);
      for (int64_t done = 0; done < rows; done += kRowsAtOnce) {
        const int count = static_cast<int>(std::min(rows - done, kRowsAtOnce));
        for (int unit = 0; unit < units; ++unit) {
          const int number = run.first + step + unit;
          products_.multiply(matrix, matrix.unit(number), x_rows_, numbers, start + done, count,
                             ahead, panel_, sums_);
          add_bias(expert, number, count);
          products_.kernels().activate(experts_.activation, sums_, count,
                                       hidden_ + unit * per_unit_, hidden_stride());
        }
        const int from = (run.first + step) * per_unit_;
        const int given = std::min(units * per_unit_, h_rows_.inputs - from);
        for (int row = 0; row < count; ++row) {
          products_.put(h_rows_, start + done + row, from, hidden_ + row * hidden_stride(), given,
                        offset);
        }
      }
    }
  }

  void add_bias(int64_t expert, int unit, int rows) const {
    if (experts_.bias_in == nullptr) return;
    const int padded = experts_.in().outputs;
    const float* bias = experts_.bias_in + expert * padded + unit * kUnit;
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < kUnit; ++i) sums_[row * kUnit + i] += bias[i];
    }
  }

  // Each thread claims output channels and adds all experts to them, in ascending order. So no two
  // threads write to the same number, and the order of summation is fixed.
  void to_output(Team& team, std::atomic<int64_t>& counter) const {
    const int units = experts_.out().units();
    const bool few = routed_.rows < 16 * *order_.num_active;
    Claims claims(counter, units, few ? 1 : 2, few ? 16 : 8, team.threads);
    Claims::Range range = claims.claim();
    while (!range.empty()) {
      const Claims::Range later = claims.claim();
      clear(range);
      for (int64_t i = 0; i < *order_.num_active; ++i) {
        const Matrix matrix = experts_.out(order_.active[i]);
        const uint8_t* next = matrix.unit(static_cast<int>(range.begin));
        if (i + 1 < *order_.num_active) {
          next = experts_.out(order_.active[i + 1]).unit(static_cast<int>(range.begin));
        } else if (!later.empty()) {
          next = experts_.out(order_.active[0]).unit(static_cast<int>(later.begin));
        }
        add_expert(order_.active[i], range, next);
      }
      range = later;
    }
  }

  void clear(const Claims::Range& range) const {
    const int64_t first = range.begin * kUnit;
    const int64_t last = std::min<int64_t>(range.end * kUnit, experts_.width);
    for (int64_t token = 0; token < routed_.tokens; ++token) {
      std::fill(y_ + token * experts_.width + first, y_ + token * experts_.width + last, 0.0f);
    }
  }

  void add_expert(int64_t expert, const Claims::Range& range, const uint8_t* next) const {
    const Matrix matrix = experts_.out(expert);
    const int64_t start = order_.start[expert], rows = order_.rows[expert];
    const Ahead ahead{matrix.unit(static_cast<int>(range.end)), next,
                      distance_for(rows, matrix.bits)};
    for (int64_t unit = range.begin; unit < range.end; ++unit) {
      const int number = static_cast<int>(unit);
      for (int64_t done = 0; done < rows; done += kRowsAtOnce) {
        const int64_t count = std::min(rows - done, kRowsAtOnce);
        products_.multiply(matrix, matrix.unit(number), h_rows_, Numbered{nullptr}, start + done,
                           count, ahead, panel_, sums_);
        add_to_tokens(expert, number, start + done, count);
      }
    }
  }

  void add_to_tokens(int64_t expert, int unit, int64_t first_row, int64_t rows) const {
    const int first = unit * kUnit, channels = std::min(kUnit, experts_.width - first);
    const float* bias =
        experts_.bias_out == nullptr ? nullptr : experts_.bias_out + expert * experts_.width + first;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t place = first_row + row;
      const float weight = routed_.weight[order_.source[place]];
      float* to = y_ + static_cast<int64_t>(order_.token[place]) * experts_.width + first;
      const float* from = sums_ + row * kUnit;
      if (bias == nullptr) {
        for (int i = 0; i < channels; ++i) to[i] += weight * from[i];
      } else {
        for (int i = 0; i < channels; ++i) to[i] += weight * (from[i] + bias[i]);
      }
    }
  }

  const Products products_;
  const Experts& experts_;
  const float* x_;
  const Routed& routed_;
  float* y_;
  const int per_unit_;       // hidden values of a row that one unit of w_in gives
  const int units_at_once_;  // units whose hidden values are quantised together
  Order order_;
  Rows x_rows_, h_rows_;
  uint8_t* panel_;
  float* sums_;
  float* hidden_;
  Scratch scratch_;
};

}  // namespace

Scratch experts_scratch(const Experts& experts, int64_t rows, int64_t tokens, Phase phase,
                        InstructionSet set) {
  const Routed routed{nullptr, nullptr, nullptr, rows, tokens};
  return with_products(phase, set, experts.bits, [&](const auto& products) {
    return Layer(products, experts, nullptr, routed, nullptr, nullptr, nullptr).scratch();
  });
}

void experts(Team& team, const Experts& experts, const float* x, const Routed& routed, Phase phase,
             InstructionSet set, uint8_t* shared, uint8_t* own, float* y) {
  with_products(phase, set, experts.bits, [&](const auto& products) {
    Layer(products, experts, x, routed, shared, own, y).compute(team);
  });
}

}  // namespace mixtura
