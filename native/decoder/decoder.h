// A step of a packed decoder, all its layers in one job: see src/mixtura/engine/program.py. Its
// twin is src/mixtura/engine/module_steps.py, which calls module after module.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

#include "attention/attention.h"
#include "decoder/gate.h"
#include "decoder/norm.h"
#include "packed/experts.h"
#include "packed/linear.h"

namespace mixtura {

struct AttentionBlock {
  Norm norm;
  Linear qkv;
  Linear out;
  Norm q_norm, k_norm;    // of each head, or of all at once
  bool norm_of_all;
  Norm post_norm;         // of what attention adds
  int heads;
  float clip;             // 0: none
  float scale;
  int64_t window;         // 0: none
  const float* sinks;     // or null
  const float* cosines;   // [angles, head dim], of which the first half counts
  const float* sines;     // [angles, head dim / 2]
  LayerCache cache;

  int head_dim() const { return cache.key_dim; }
  int64_t q_width() const { return int64_t{heads} * head_dim(); }
  int64_t k_width() const { return int64_t{cache.kv_heads} * head_dim(); }
  int64_t qkv_width() const { return q_width() + 2 * k_width(); }
};

struct FfnBlock {
  Norm norm;
  bool routed;                // else `experts` is one, for all rows
  Gate gate;
  Experts experts;
  bool shares;                // whether there are shared experts
  Experts shared;
  const float* shared_gate;   // [width], or null
  Norm post_norm;
};

struct Layer {
  AttentionBlock attention;
  FfnBlock ffn;
};

// New tokens, of one sequence each in decode, or several of some in prefill and verify.
struct StepRows {
  TokenRows rows;
  const int64_t* angle;   // rows of the tables of cosines
  const int64_t* token;
  const int64_t* asked;   // numbers of rows whose logits are wanted
  int asked_count;
  Phase phase;
};

// A say in the routing of a step; what is left out costs nothing.
struct Routes {
  // Layer after layer of those that route, [rows, top_k] each, what `choose` gives; or both null.
  int64_t* expert = nullptr;
  float* weight = nullptr;
  const int64_t* limit = nullptr;  // of experts for each row, 1 or more; null: top_k
  // Called by one thread between routing and experts, with the number of the layer. It may change
  // what was chosen and the experts' table, and must start no other job.
  std::function<void(int)> between;
};

class Program {
 public:
  // `embedding` has a row for each token, which is multiplied by `embedded`.
  Program(const Matrix& embedding, float embedded, float residual, const Norm& norm,
          const Linear& head, float logits)
      : embedding_(embedding), embedded_(embedded), residual_(residual), norm_(norm), head_(head),
        logits_(logits) {}

  void add(const Layer& layer);

  int64_t vocabulary() const { return embedding_.outputs; }

  // logits[asked_count, vocabulary]. One step at a time; another waits. Raises what `between`
  // raises, and std::out_of_range where a row then has an expert that is not here.
  void step(const StepRows& step, const Routes& routes, InstructionSet set, float* logits);

 private:
  friend class Step;

  // How attention is shared out in layers of one window.
  struct Plans {
    size_t layer;         // the first of them
    AttentionPlan all;    // of all rows
    AttentionPlan asked;  // of those asked for, in the last layer
  };

  void make_plans(const StepRows& step);
  const Plans& plans_of(int64_t window) const;
  Scratch stage_scratch(const StepRows& step, InstructionSet set) const;

  const Matrix embedding_;
  const float embedded_;
  const float residual_;  // what is added to the stream is multiplied by it
  const Norm norm_;
  const Linear head_;
  const float logits_;    // what logits are multiplied by
  std::vector<Layer> layers_;
  std::mutex busy_;
  std::vector<Plans> plans_;
  std::vector<int64_t> asked_slot_, asked_position_;
  TokenRows asked_{};
  bool all_asked_ = true;  // in their order
  std::exception_ptr failure_;  // of a step
};

}  // namespace mixtura
