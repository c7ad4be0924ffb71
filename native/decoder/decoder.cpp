#include "decoder/decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "decoder/embedding.h"
#include "decoder/step.h"

namespace mixtura {

void Step::take_shared(Carver& carver) {
  const int64_t rows = std::max(given_.rows.count, asked_.count);
  int64_t projected = 0, q = 0, mixed = 0, chosen = 0, logits = 0;
  for (const Layer& layer : program_.layers_) {
    std::visit([&](const auto& mixer) {
      projected = std::max(projected, mixer.projected_width());
      q = std::max(q, mixer.query_width());
      mixed = std::max(mixed, mixer.mixed_width());
    }, layer.mixer);
    if (!layer.ffn.routed) continue;
    chosen = std::max(chosen, int64_t{layer.ffn.gate.top_k});
    logits = std::max(logits, layer.ffn.gate.blocks() * kPositions);
  }
  x_ = carver.take<float>(rows * width());
  normed_ = carver.take<float>(rows * width());
  projected_ = carver.take<float>(rows * projected);
  q_ = carver.take<float>(rows * q);
  attended_ = carver.take<float>(rows * mixed);
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
  int64_t experts = 0, own = 0;
  for (const Layer& layer : program_.layers_) {
    std::visit([&](const auto& mixer) { own = std::max(own, mixer.own_floats()); }, layer.mixer);
    if (layer.ffn.routed) experts = std::max(experts, int64_t{layer.ffn.gate.num_experts});
  }
  scores_ = carver.take<float>(4 * experts);
  own_ = carver.take<float>(own);
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
    norm_rows(team, layer.norm);
    std::visit([&](const auto& mixer) { mix(team, mixer); }, layer.mixer);
    team.barrier();
    each(team, rows_, [&](int64_t i) { add_branch(i, layer.post_norm); });
    if (!ffn(team, layer.ffn, number)) return;
  }
  if (!program_.all_asked_ && !some_) {
    // The last layer computed all rows. What other threads added to the stream is copied here.
    team.barrier();
    some_ = true;
    leave_others(team);
  }
  norm_rows(team, program_.norm_);
  multiply(team, program_.head_, normed_, width(), logits_, program_.head_.matrix.outputs);
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

// A barrier, and then the residual stream has the rows that go on alone.
void Step::leave_others(Team& team) {
  if (some_) {
    each(team, asked_.count, [&](int64_t i) {
      std::copy_n(row(x_, given_.asked[i]), width(), row(normed_, i));
    });
  }
  team.barrier();
  if (!some_) return;
  std::swap(x_, normed_);
  rows_ = asked_.count;
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
  gate_logits(team, kernels_, gate.weight, gate.num_experts, normed_, width(), rows_, gate_logits_);
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

void Step::multiply(Team& team, const Linear& layer, const float* x, int64_t x_stride, float* out,
                    int64_t out_stride) {
  linear(team, layer, x, x_stride, rows_, given_.phase, set_, stage_, stage_own_, out, out_stride);
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
    Queries queries{};
    queries.heads = plans.heads;
    queries.window = plans.window;
    plans.all.make(step.rows, queries, plans.kv_heads, step.phase);
    plans.asked.make(asked_, queries, plans.kv_heads, step.phase);
  }
}

void Program::find_sequences(const StepRows& step) {
  const auto by_sequence = [](const Layer& layer) {
    return std::holds_alternative<GatedDelta>(layer.mixer) ||
           std::holds_alternative<Mamba2>(layer.mixer);
  };
  if (std::none_of(layers_.begin(), layers_.end(), by_sequence)) return;
  sequence_slot_.clear();
  sequence_end_.clear();
  std::vector<int64_t> sequence(step.rows.count);
  for (int row = 0; row < step.rows.count; ++row) {
    const int64_t slot = step.rows.slot[row];
    const auto found = std::find(sequence_slot_.begin(), sequence_slot_.end(), slot);
    sequence[row] = found - sequence_slot_.begin();
    if (found == sequence_slot_.end()) {
      sequence_slot_.push_back(slot);
      sequence_end_.push_back(0);
    }
    ++sequence_end_[sequence[row]];
  }
  // Counts become the places where sequences begin, and then, row by row, where they end.
  std::exclusive_scan(sequence_end_.begin(), sequence_end_.end(), sequence_end_.begin(),
                      int64_t{0});
  sequence_row_.resize(step.rows.count);
  for (int row = 0; row < step.rows.count; ++row) {
    sequence_row_[sequence_end_[sequence[row]]++] = row;
  }
}

// Null before a layer of that kind is added.
const Program::Plans* Program::plans_of(const CachedHeads& over) const {
  for (const Plans& plans : plans_) {
    const bool same = plans.window == over.window && plans.heads == over.heads;
    if (same && plans.kv_heads == over.cache.kv_heads) return &plans;
  }
  return nullptr;
}

void Program::add(const Layer& layer) {
  const CachedHeads* over = layer.heads();
  if (over != nullptr && plans_of(*over) == nullptr) {
    plans_.emplace_back();
    Plans& made = plans_.back();
    made.window = over->window;
    made.heads = over->heads;
    made.kv_heads = over->cache.kv_heads;
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
    std::visit([&](const auto& mixer) {
      mixer.each_linear([&](const Linear& one) {
        take(linear_scratch(one, rows, step.phase, set));
      });
    }, layer.mixer);
    if (const auto* delta = std::get_if<GatedDelta>(&layer.mixer)) {
      take(delta_scratch(delta->mixer, set));
    }
    if (const auto* mamba = std::get_if<Mamba2>(&layer.mixer)) {
      take(mamba_scratch(mamba->mixer, set));
    }
    if (const CachedHeads* over = layer.heads()) {
      const Plans& plans = *plans_of(*over);
      take(attention_scratch(plans.all, over->cache, over->heads, set));
      take(attention_scratch(plans.asked, over->cache, over->heads, set));
    }
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
  find_sequences(step);
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
