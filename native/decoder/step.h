// One thread's share of a step of a decoder: see decoder.h. Each mixer has a file of its own.
#pragma once

#include <cstdint>

#include "decoder/decoder.h"

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
  // The mixer's output for all rows, or in a last layer for the asked rows alone, into branch_.
  void mix(Team& team, const GroupedAttention& block);
  void mix(Team& team, const LatentAttention& block);
  void mix(Team& team, const ShortConv& block);
  void mix(Team& team, const GatedDelta& block);
  void mix(Team& team, const Mamba2& block);

  void rotate_queries(const Team& team, const GroupedAttention& block);
  void keep_rows(const Team& team, const GroupedAttention& block);
  void scale_outputs(const Team& team, const GroupedAttention& block);
  void rotate_head(const GroupedAttention& block, const Norm& norm, const float* all,
                   int64_t offset, float factor, int64_t angle, float* out) const;

  void project(Team& team, const LatentAttention& block);
  void keep_rows(const Team& team, const LatentAttention& block);
  void absorb_queries(const Team& team, const LatentAttention& block);
  void absorb_in_blocks(const LatentAttention& block, int head, int64_t rows);
  void find_values(const Team& team, const LatentAttention& block);
  void find_values_in_blocks(const LatentAttention& block, int head);

  void convolve(const Team& team, const ShortConv& block);

  // Attention of the rows that go on, from q_ into attended_. A barrier has to be before; there is
  // one at its end.
  void attend_rows(Team& team, const CachedHeads& over);
  // Where some rows alone go on: the number of the row among all that is number `i` of them.
  int64_t source(int64_t i) const { return some_ ? given_.asked[i] : i; }
  int64_t going_on() const { return some_ ? asked_.count : given_.rows.count; }
  bool ffn(Team& team, const FfnBlock& block, int layer);
  void route(Team& team, const Gate& gate);
  bool between(Team& team, const FfnBlock& block, int layer);
  void check_choices(const FfnBlock& block) const;
  void leave_others(Team& team);
  void add_branch(int64_t number, const Norm& post);
  void add_shared(int64_t number, const float* gate);
  void multiply(Team& team, const Linear& layer, const float* x, int64_t x_stride, float* out,
                int64_t out_stride);
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
  float* projected_;      // the mixer's projections
  float* q_;              // queries as attention takes them, after RoPE
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
  float* own_;            // this thread's scratch for the mixer
  uint8_t* stage_own_;    // this thread's scratch for one linear, experts or attention
};

}  // namespace mixtura
