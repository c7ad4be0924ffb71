#include "decoder/decoder.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "decoder/embedding.h"

namespace mixtura {

// One thread's share of a step's work.
class Step {
 public:
  Step(Program& program, const StepRows& given, const Routes& routes, InstructionSet set,
       float* logits)
      : program_(program), given_(given), routes_(routes), asked_(program.asked_), set_(set),
        logits_(logits), kernels_(attention_kernels(set)), kept_expert_(routes.expert),
        kept_weight_(routes.weight) {}

  void take_shared(Carver& carver);
  void take_own(Carver& carver);
  void compute(Team& team);

 private:
  int64_t width() const { return program_.embedding_.inputs; }
  float* row(float* rows, int64_t number) const { return rows + number * width(); }

  // Row i goes to thread i % threads, as when `linear` and `experts` quantise their input rows. So
  // a thread quantises only rows that it wrote itself, and no barrier is needed in between.
  template <class Function>
  static void each(const Team& team, int64_t count, const Function& f) {
    for (int64_t i = team.thread; i < count; i += team.threads) f(i);
  }

  void norm_rows(const Team& team, const Norm& norm);
  void attention(Team& team, const AttentionBlock& block);
  void turn_queries(const Team& team, const AttentionBlock& block, bool some);
  void keep_rows(const Team& team, const AttentionBlock& block);
  void turn_head(const AttentionBlock& block, const Norm& norm, const float* all, int64_t offset,
                 float factor, int64_t angle, float* out) const;
  bool ffn(Team& team, const FfnBlock& block, int layer);
  void route(Team& team, const Gate& gate);
  bool between(Team& team, const FfnBlock& block, int layer);
  void check_choices(const FfnBlock& block) const;
  void leave_others(Team& team);
  void add_branch(int64_t number, const Norm& post);
  void add_shared(int64_t number, const float* gate);
  void multiply(Team& team, const Linear& layer, const float* x, float* out);
  void feed(Team& team, const Experts& layer, const Routed& routed, float* out);

  Program& program_;
  const StepRows& given_;
  const Routes& routes_;
  const TokenRows& asked_;
  const InstructionSet set_;
  float* const logits_;
  const AttentionKernels& kernels_;

  int64_t* kept_expert_;  // the next routed layer's part of Routes::expert, or null
  float* kept_weight_;
  // True in a last layer that computes only the rows of StepRows::asked after its keys and values.
  bool some_ = false;
  int64_t rows_ = 0;      // number of rows in x_
  float* x_;              // the residual stream
  float* normed_;
  float* qkv_;
  float* q_;              // queries after RoPE
  float* attended_;
  float* branch_;         // output of attention or FFN, before the residual addition
  float* shared_out_;
  float* gate_logits_;
  int64_t* token_;        // of each routed row, as are expert_ and weight_
  int64_t* expert_;
  float* weight_;
  int64_t* every_;        // 0, 1, 2, ...: the routing of all rows to expert 0
  int64_t* first_expert_;  // zeros
  float* one_;            // ones
  uint8_t* stage_;        // scratch of all threads for one linear, experts or attention
  float* scores_;         // this thread's scratch for `choose`
  float* head_;           // this thread's scratch for one key or value
  uint8_t* stage_own_;    // this thread's scratch for one linear, experts or attention
};

void Step::take_shared(Carver& carver) {
  const int64_t rows = std::max(given_.rows.count, asked_.count);
  int64_t qkv = 0, q = 0, chosen = 0, logits = 0;
  for (const Layer& layer : program_.layers_) {
    qkv = std::max(qkv, layer.attention.qkv_width());
    q = std::max(q, layer.attention.q_width());
    if (!layer.ffn.routed) continue;
    chosen = std::max(chosen, int64_t{layer.ffn.gate.top_k});
    logits = std::max(logits, layer.ffn.gate.blocks() * kPositions);
  }
  x_ = carver.take<float>(rows * width());
  normed_ = carver.take<float>(rows * width());
  qkv_ = carver.take<float>(rows * qkv);
  q_ = carver.take<float>(rows * q);
  attended_ = carver.take<float>(rows * q);
  branch_ = carver.take<float>(rows * width());
  shared_out_ = carver.take<float>(rows * width());
  gate_logits_ = carver.take<float>(rows * logits);
  token_ = carver.take<int64_t>(rows * chosen);
  expert_ = carver.take<int64_t>(rows * chosen);
  weight_ = carver.take<float>(rows * chosen);
  every_ = carver.take<int64_t>(rows);
  first_expert_ = carver.take<int64_t>(rows);
  one_ = carver.take<float>(rows);
  stage_ = carver.take<uint8_t>(0);
}

void Step::take_own(Carver& carver) {
  int64_t experts = 0, head = 0;
  for (const Layer& layer : program_.layers_) {
    head = std::max(head, int64_t{layer.attention.head_dim()});
    if (layer.ffn.routed) experts = std::max(experts, int64_t{layer.ffn.gate.num_experts});
  }
  scores_ = carver.take<float>(4 * experts);
  head_ = carver.take<float>(head);
  stage_own_ = carver.take<uint8_t>(0);
}

void Step::compute(Team& team) {
  rows_ = given_.rows.count;
  each(team, rows_, [&](int64_t i) {
    unpack_row(program_.embedding_, given_.token[i], program_.embedded_, row(x_, i));
  });
  each(team, std::max(rows_, int64_t{asked_.count}), [&](int64_t i) {
    every_[i] = i;
    first_expert_[i] = 0;
    one_[i] = 1.0f;
  });
  const int layers = static_cast<int>(program_.layers_.size());
  for (int number = 0; number < layers; ++number) {
    const Layer& layer = program_.layers_[number];
    // In the last layer, rows without logits are needed only for their keys and values. All rows
    // are computed if the caller collects every row's choices.
    some_ = number + 1 == layers && !program_.all_asked_ && routes_.expert == nullptr;
    attention(team, layer.attention);
    if (!ffn(team, layer.ffn, number)) return;
  }
  if (!program_.all_asked_ && !some_) leave_others(team);
  norm_rows(team, program_.norm_);
  multiply(team, program_.head_, normed_, logits_);
  if (program_.logits_ == 1.0f) return;
  team.barrier();
  const int64_t vocabulary = program_.head_.matrix.outputs;
  const int64_t all = rows_ * vocabulary, begin = all * team.thread / team.threads;
  const int64_t end = all * (team.thread + 1) / team.threads;
  for (int64_t i = begin; i < end; ++i) logits_[i] *= program_.logits_;
}

void Step::norm_rows(const Team& team, const Norm& norm) {
  each(team, rows_, [&](int64_t i) { norm.apply(row(x_, i), width(), row(normed_, i)); });
}

// Keeps only the asked rows of the residual stream, after a last layer that computed all rows.
void Step::leave_others(Team& team) {
  team.barrier();
  each(team, asked_.count, [&](int64_t i) {
    std::copy_n(row(x_, given_.asked[i]), width(), row(normed_, i));
  });
  team.barrier();
  std::swap(x_, normed_);
  rows_ = asked_.count;
}

void Step::attention(Team& team, const AttentionBlock& block) {
  const bool some = some_;
  norm_rows(team, block.norm);
  multiply(team, block.qkv, normed_, qkv_);
  team.barrier();
  keep_rows(team, block);
  turn_queries(team, block, some);
  team.barrier();
  if (some) {
    std::swap(x_, normed_);
    rows_ = asked_.count;
  }
  const Program::Plans& plans = program_.plans_of(block.window);
  const Queries queries{q_,           block.q_width(), block.heads, block.scale,
                        block.window, block.sinks,     attended_};
  attend(team, some ? plans.asked : plans.all, block.cache, some ? asked_ : given_.rows, queries,
         set_, stage_, stage_own_);
  team.barrier();
  multiply(team, block.out, attended_, branch_);
  team.barrier();
  each(team, rows_, [&](int64_t i) { add_branch(i, block.post_norm); });
}

// The RMSNorm factor over all heads of a row. A thread computes it once for consecutive heads of
// the same row; without norm_of_all the factor is 1.
class SizeOfAll {
 public:
  SizeOfAll(const AttentionBlock& block, const Norm& norm, int64_t width)
      : needed_(block.norm_of_all), epsilon_(norm.epsilon), width_(width) {}

  float factor(int64_t row, const float* all) {
    if (needed_ && row != row_) {
      const float square = sum_of_squares(all, width_) / static_cast<float>(width_);
      factor_ = 1.0f / std::sqrt(square + epsilon_);
      row_ = row;
    }
    return factor_;
  }

 private:
  const bool needed_;
  const float epsilon_;
  const int64_t width_;
  int64_t row_ = -1;
  float factor_ = 1.0f;
};

// Writes the queries after RoPE to q_. If `some`, only the asked rows are written, and their
// residual stream is copied to normed_, which then takes the place of x_.
void Step::turn_queries(const Team& team, const AttentionBlock& block, bool some) {
  const int64_t rows = some ? asked_.count : rows_;
  SizeOfAll size(block, block.q_norm, block.q_width());
  each(team, rows * block.heads, [&](int64_t i) {
    const int64_t number = i / block.heads, offset = i % block.heads * block.head_dim();
    const int64_t from = some ? given_.asked[number] : number;
    const float* q = qkv_ + from * block.qkv_width();
    turn_head(block, block.q_norm, q, offset, size.factor(from, q), given_.angle[from],
              q_ + number * block.q_width() + offset);
  });
  if (!some) return;
  each(team, rows, [&](int64_t i) {
    std::copy_n(row(x_, given_.asked[i]), width(), row(normed_, i));
  });
}

void Step::keep_rows(const Team& team, const AttentionBlock& block) {
  const int kv_heads = block.cache.kv_heads, dim = block.head_dim();
  SizeOfAll size(block, block.k_norm, block.k_width());
  each(team, rows_ * kv_heads, [&](int64_t i) {
    const int64_t number = i / kv_heads, offset = i % kv_heads * dim;
    const int head = static_cast<int>(i % kv_heads);
    const int64_t place =
        block.cache.place(given_.rows.slot[number], head, given_.rows.position[number]);
    const float* k = qkv_ + number * block.qkv_width() + block.q_width();
    turn_head(block, block.k_norm, k, offset, size.factor(number, k), given_.angle[number], head_);
    keep_vector(kernels_, block.cache, true, place, head_);
    std::copy_n(k + block.k_width() + offset, dim, head_);
    if (block.clip > 0.0f) clip(head_, dim, block.clip);
    keep_vector(kernels_, block.cache, false, place, head_);
  });
}

// Normalises, clips and rotates the head at all + offset, and writes it to `out`.
void Step::turn_head(const AttentionBlock& block, const Norm& norm, const float* all,
                     int64_t offset, float factor, int64_t angle, float* out) const {
  const int dim = block.head_dim();
  if (block.norm_of_all) {
    for (int c = 0; c < dim; ++c) out[c] = all[offset + c] * factor * norm.weight[offset + c];
  } else {
    norm.apply(all + offset, dim, out);
  }
  if (block.clip > 0.0f) clip(out, dim, block.clip);
  turn(out, block.cosines + angle * dim, block.sines + angle * (dim / 2), dim / 2);
}

// Returns false if `between` failed, which ends the step.
bool Step::ffn(Team& team, const FfnBlock& block, int layer) {
  norm_rows(team, block.norm);
  const Routed every{every_, first_expert_, one_, rows_, rows_};
  if (block.routed) {
    team.barrier();
    route(team, block.gate);
    team.barrier();
    if (routes_.between && !between(team, block, layer)) return false;
    feed(team, block.experts, {token_, expert_, weight_, rows_ * block.gate.top_k, rows_}, branch_);
    if (block.shares) {
      team.barrier();
      feed(team, block.shared, every, shared_out_);
    }
  } else {
    feed(team, block.experts, every, branch_);
  }
  team.barrier();
  each(team, rows_, [&](int64_t i) {
    if (block.shares) add_shared(i, block.shared_gate);
    add_branch(i, block.post_norm);
  });
  return true;
}

void Step::route(Team& team, const Gate& gate) {
  gate_logits(team, kernels_, gate, normed_, width(), rows_, gate_logits_);
  team.barrier();
  if (kept_expert_ != nullptr) {
    // Experts read their choices from the caller's arrays, where `between` may change them.
    expert_ = kept_expert_;
    weight_ = kept_weight_;
    kept_expert_ += rows_ * gate.top_k;
    kept_weight_ += rows_ * gate.top_k;
  }
  each(team, rows_, [&](int64_t i) {
    const int64_t first = i * gate.top_k;
    int64_t chosen = gate.top_k;
    if (routes_.limit != nullptr) {
      chosen = std::min(chosen, routes_.limit[some_ ? given_.asked[i] : i]);
    }
    std::fill_n(token_ + first, gate.top_k, i);
    choose(gate, static_cast<int>(chosen), gate_logits_, i, rows_, scores_, expert_ + first,
           weight_ + first);
  });
}

// Returns whether the step goes on, with the same result in every thread.
bool Step::between(Team& team, const FfnBlock& block, int layer) {
  if (team.thread == 0) {
    // A job must not throw, so Program::step rethrows the exception.
    try {
      routes_.between(layer);
      check_choices(block);
    } catch (...) {
      program_.failure_ = std::current_exception();
    }
  }
  team.barrier();
  return program_.failure_ == nullptr;
}

void Step::check_choices(const FfnBlock& block) const {
  for (int64_t i = 0; i < rows_ * block.gate.top_k; ++i) {
    const int64_t expert = expert_[i];
    if (expert == block.gate.num_experts) continue;
    if (expert < 0 || expert > block.gate.num_experts || !block.experts.tiles[expert]) {
      throw std::out_of_range("expert " + std::to_string(expert) + " was chosen and is not here");
    }
  }
}

void Step::add_branch(int64_t number, const Norm& post) {
  float* x = row(x_, number);
  float* branch = row(branch_, number);
  if (post.kind != Norm::Kind::none) post.apply(branch, width(), branch);
  for (int64_t i = 0; i < width(); ++i) x[i] += branch[i] * program_.residual_;
}

void Step::add_shared(int64_t number, const float* gate) {
  float factor = 1.0f;
  if (gate != nullptr) {
    factor = 1.0f / (1.0f + std::exp(-dot(gate, row(normed_, number), width())));
  }
  float* branch = row(branch_, number);
  const float* shared = row(shared_out_, number);
  for (int64_t i = 0; i < width(); ++i) branch[i] += factor * shared[i];
}

void Step::multiply(Team& team, const Linear& layer, const float* x, float* out) {
  linear(team, layer, x, layer.matrix.inputs, rows_, given_.phase, set_, stage_, stage_own_, out,
         layer.matrix.outputs);
}

void Step::feed(Team& team, const Experts& layer, const Routed& routed, float* out) {
  experts(team, layer, normed_, routed, given_.phase, set_, stage_, stage_own_, out);
}

void Program::make_plans(const StepRows& step) {
  asked_slot_.clear();
  asked_position_.clear();
  for (int i = 0; i < step.asked_count; ++i) {
    asked_slot_.push_back(step.rows.slot[step.asked[i]]);
    asked_position_.push_back(step.rows.position[step.asked[i]]);
  }
  asked_ = {step.asked_count, asked_slot_.data(), asked_position_.data()};
  all_asked_ = step.asked_count == step.rows.count;
  for (int i = 0; i < step.asked_count; ++i) all_asked_ = all_asked_ && step.asked[i] == i;
  for (Plans& plans : plans_) {
    const AttentionBlock& block = layers_[plans.layer].attention;
    Queries queries{};
    queries.heads = block.heads;
    queries.window = block.window;
    plans.all.make(step.rows, queries, block.cache.kv_heads, step.phase);
    plans.asked.make(asked_, queries, block.cache.kv_heads, step.phase);
  }
}

const Program::Plans& Program::plans_of(int64_t window) const {
  for (const Plans& plans : plans_) {
    if (layers_[plans.layer].attention.window == window) return plans;
  }
  __builtin_unreachable();
}

void Program::add(const Layer& layer) {
  const bool known = std::any_of(plans_.begin(), plans_.end(), [&](const Plans& plans) {
    return layers_[plans.layer].attention.window == layer.attention.window;
  });
  if (!known) {
    plans_.emplace_back();
    plans_.back().layer = layers_.size();
  }
  layers_.push_back(layer);
}

Scratch Program::stage_scratch(const StepRows& step, InstructionSet set) const {
  Scratch most{0, 0};
  const auto take = [&](const Scratch& scratch) {
    most.shared = std::max(most.shared, scratch.shared);
    most.own = std::max(most.own, scratch.own);
  };
  const int64_t rows = std::max(step.rows.count, step.asked_count);
  for (const Layer& layer : layers_) {
    const AttentionBlock& attention = layer.attention;
    take(linear_scratch(attention.qkv, rows, step.phase, set));
    take(linear_scratch(attention.out, rows, step.phase, set));
    const Plans& plans = plans_of(attention.window);
    take(attention_scratch(plans.all, attention.cache, attention.heads, set));
    take(attention_scratch(plans.asked, attention.cache, attention.heads, set));
    const FfnBlock& ffn = layer.ffn;
    const int64_t routed = ffn.routed ? rows * ffn.gate.top_k : rows;
    take(experts_scratch(ffn.experts, routed, rows, step.phase, set));
    if (ffn.shares) take(experts_scratch(ffn.shared, rows, rows, step.phase, set));
  }
  take(linear_scratch(head_, step.asked_count, step.phase, set));
  return most;
}

void Program::step(const StepRows& step, const Routes& routes, InstructionSet set,
                   float* logits) {
  std::lock_guard<std::mutex> lock(busy_);
  make_plans(step);
  Step first(*this, step, routes, set, logits);
  Carver shared(nullptr), own(nullptr);
  first.take_shared(shared);
  first.take_own(own);
  const Scratch stage = stage_scratch(step, set);
  const Scratch whole{shared.used() + stage.shared, own.used() + stage.own};
  Pool::shared().run(whole, [&](Team& team, uint8_t* shared_memory, uint8_t* own_memory) {
    Carver own_carver(own_memory), shared_carver(shared_memory);
    Step mine = first;
    mine.take_shared(shared_carver);
    mine.take_own(own_carver);
    mine.compute(team);
  });
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace mixtura
