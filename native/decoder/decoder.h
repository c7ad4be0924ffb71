// One step of a decoder with packed weights: all layers run as one job of the thread pool. The
// caller is src/mixtura/engine/program.py; the reference, which calls one torch module after
// another, is src/mixtura/engine/module_steps.py.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

#include "decoder/mixers.h"

namespace mixtura {

// The new tokens of a step, one a row. In decode each row belongs to another sequence; in prefill
// and verify a sequence may have several rows.
struct StepRows {
  TokenRows rows;
  const int64_t* angle;   // for each row, its row in the RoPE tables
  const int64_t* token;   // for each row, its token
  const int64_t* asked;   // [asked_count] the rows whose logits are computed
  int asked_count;
  Phase phase;
};

// Optional outputs and limits of the routing in a step. A null or empty member is skipped.
struct Routes {
  // Outputs of `choose`: [rows, top_k] for each routed layer, one layer after another. Either both
  // are null or none.
  int64_t* expert = nullptr;
  float* weight = nullptr;
  const int64_t* limit = nullptr;  // experts of each row at most, 1 or more; null: top_k
  // Called in one thread after a layer's routing and before its experts, with the layer's number.
  // It may change `expert`, `weight` and the table Experts::tiles, but must not start another job.
  std::function<void(int)> between;
};

class Program {
 public:
  // `embedding` has one row for each token. Embedded rows are multiplied by `embedded`, the outputs
  // of attention and FFN by `residual`, and the logits by `logits`.
  Program(const Matrix& embedding, float embedded, float residual, const Norm& norm,
          const Linear& head, float logits)
      : embedding_(embedding), embedded_(embedded), residual_(residual), norm_(norm), head_(head),
        logits_(logits) {}

  void add(const Layer& layer);

  int64_t vocabulary() const { return embedding_.outputs; }

  // Writes logits[asked_count, vocabulary]. Steps run one at a time; a second caller waits.
  // Rethrows an exception of `between`, and throws std::out_of_range if `between` leaves a chosen
  // expert whose weights are not in memory.
  void step(const StepRows& step, const Routes& routes, InstructionSet set, float* logits);

 private:
  friend class Step;

  // The attention plans of all layers with the same window and the same number of heads.
  struct Plans {
    int64_t window;
    int heads, kv_heads;
    AttentionPlan all;    // of all rows
    AttentionPlan asked;  // of StepRows::asked, for the last layer
  };

  void make_plans(const StepRows& step);
  void find_sequences(const StepRows& step);
  const Plans* plans_of(const CachedHeads& over) const;
  Scratch stage_scratch(const StepRows& step, InstructionSet set) const;

  const Matrix embedding_;
  const float embedded_;
  const float residual_;  // factor of attention and FFN outputs
  const Norm norm_;
  const Linear head_;
  const float logits_;    // factor of the logits
  std::vector<Layer> layers_;
  std::mutex busy_;
  std::vector<Plans> plans_;
  std::vector<int64_t> asked_slot_, asked_position_;
  TokenRows asked_{};
  // The rows by their slots, for mixers that read a sequence's rows one after another.
  std::vector<int64_t> sequence_slot_, sequence_end_, sequence_row_;
  bool all_asked_ = true;       // `asked` is 0, 1, ... for all rows
  std::exception_ptr failure_;  // thrown by `between` in the current step
};

}  // namespace mixtura
