// What a layer mixes tokens with: one struct for each kind of mixer, and the layer that holds it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <variant>

#include "attention/attention.h"
#include "decoder/gate.h"
#include "decoder/norm.h"
#include "packed/experts.h"
#include "packed/linear.h"
#include "recurrent/delta_mixer.h"
#include "recurrent/mamba_mixer.h"

namespace mixtura {

// What every kind of attention has: heads that attend to a cache, and the output projection.
struct CachedHeads {
  Linear out;
  int heads;
  float scale;
  int64_t window;         // of sliding-window attention; 0: none
  const float* sinks;     // [heads] attention-sink logits, or null
  const float* cosines;   // RoPE table [angles, rope dim]; only the first half of a row is read
  const float* sines;     // RoPE table [angles, rope dim / 2]
  int rope_dim;           // dims of a head that RoPE rotates
  LayerCache cache;

  int key_dim() const { return cache.key_dim; }
  int64_t query_width() const { return int64_t{heads} * key_dim(); }
  int64_t mixed_width() const { return int64_t{heads} * cache.value_dim; }
  const float* cosines_at(int64_t angle) const { return cosines + angle * rope_dim; }
  const float* sines_at(int64_t angle) const { return sines + angle * (rope_dim / 2); }
};

// Grouped-query attention. A row of its projections is [queries, keys, values], and behind them the
// gate of its output, where it has one.
struct GroupedAttention {
  CachedHeads over;
  Linear qkv;
  Norm q_norm, k_norm;
  bool norm_of_all;       // q_norm and k_norm: over all heads at once, else over each head
  float clip;             // bound of |q|, |k| and |v|; 0: none
  bool gated;             // a sigmoid of output_gate scales what the heads give
  Linear output_gate;

  int64_t key_width() const { return int64_t{over.cache.kv_heads} * over.key_dim(); }
  int64_t gate_start() const { return over.query_width() + 2 * key_width(); }
  int64_t projected_width() const { return gate_start() + (gated ? over.mixed_width() : 0); }
  int64_t query_width() const { return over.query_width(); }
  int64_t mixed_width() const { return over.mixed_width(); }
  int64_t own_floats() const { return over.key_dim(); }
  template <class Function>
  void each_linear(const Function& f) const {
    f(qkv);
    if (gated) f(output_gate);
    f(over.out);
  }
};

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) in its absorbed form. A
// cached key is [latent, rotated key], and a cached value is the latent. A row of its projections
// is [latent of queries, latent, key before RoPE, queries]; the values of its heads replace it.
struct LatentAttention {
  CachedHeads over;
  bool squeezes;          // queries come from a latent of their own; else from the row itself
  Linear query_down;
  Norm query_norm;
  Linear query;           // of each head: nope_dim dims, then rope_dim dims
  Linear kv_down;
  Norm kv_norm;
  const uint8_t* kv_up;   // [heads, nope_dim + value_dim, rank]
  Kept kept;              // the numbers of kv_up: fp32 or bf16
  int nope_dim;           // dims of a query that RoPE does not rotate
  int value_dim;          // of a head, after kv_up

  // Rows of a block of GEMM in prefill.
  static constexpr int kRows = 32;

  int rank() const { return over.cache.value_dim; }
  int query_dim() const { return nope_dim + over.rope_dim; }
  int64_t squeezed_width() const { return squeezes ? query_down.matrix.outputs : 0; }
  int64_t query_start() const { return squeezed_width() + over.key_dim(); }
  int64_t projected_width() const {
    const int64_t queries = query_start() + int64_t{over.heads} * query_dim();
    return std::max(queries, int64_t{over.heads} * value_dim);
  }
  int64_t query_width() const { return over.query_width(); }
  int64_t mixed_width() const { return over.mixed_width(); }
  // Rows `first`, first + 1, ... of a head's part of kv_up: keys, then values.
  Vectors up_at(int head, int first) const {
    const int64_t row = int64_t{head} * (nope_dim + value_dim) + first;
    return {kv_up + row * rank() * kept_bytes(kept), kept, rank(), rank()};
  }
  // One vector, and in prefill a head's part of kv_up in fp32 and a block of products.
  int64_t vector_floats() const { return padded(over.key_dim()); }
  int64_t panel_floats() const {
    const int64_t keys = round_up(nope_dim, kPositions) * padded(rank());
    return std::max(keys, int64_t{rank()} * kPositions);
  }
  int64_t own_floats() const {
    return vector_floats() + panel_floats() + kRows * std::max(padded(rank()), kPositions);
  }
  template <class Function>
  void each_linear(const Function& f) const {
    if (squeezes) f(query_down);
    f(query);
    f(kv_down);
    f(over.out);
  }
};

// The gated short convolution of LFM2 (arXiv 2511.23404): out(c * conv(b * v)). A row of its
// projections is [b, c, v].
struct ShortConv {
  Linear projection;
  Linear out;
  const float* weight;    // [kernel, width], the tap of the oldest token first
  const float* bias;      // [width], or null
  int kernel;
  float* state;           // [slots, kernel - 1, width] the last inputs of conv, the oldest first

  int64_t width() const { return out.matrix.inputs; }
  int64_t projected_width() const { return 3 * width(); }
  int64_t query_width() const { return width(); }
  int64_t mixed_width() const { return width(); }
  int64_t own_floats() const { return 0; }
  float* state_of(int64_t slot) const { return state + slot * (kernel - 1) * width(); }
  template <class Function>
  void each_linear(const Function& f) const {
    f(projection);
    f(out);
  }
};

// Gated DeltaNet (arXiv 2412.06464): see recurrent/delta_mixer.h. A row of its projections is
// [queries, keys, values, gate of the output]; behind all rows lie beta and step of their heads, as
// `gate_logits` writes them.
struct GatedDelta {
  Linear projection;
  Linear out;
  Vectors gates;          // [2 * value heads, width], fp32 or bf16: of beta, then of step
  DeltaMixer mixer;
  DeltaStates states;

  int num_gates() const { return 2 * mixer.value_heads; }
  int64_t row_width() const { return mixer.channels() + mixer.values(); }
  int64_t projected_width() const { return row_width() + round_up(num_gates(), kPositions); }
  int64_t query_width() const { return mixer.values(); }
  int64_t mixed_width() const { return mixer.values(); }
  int64_t own_floats() const { return 0; }
  template <class Function>
  void each_linear(const Function& f) const {
    f(projection);
    f(out);
  }
};

// Mamba-2 (arXiv 2405.21060): see recurrent/mamba_mixer.h. A row of its projections is [gate of the
// output, inputs, b, c]; behind all rows lie the steps of their heads, as `gate_logits` writes them.
struct Mamba2 {
  Linear projection;
  Linear out;
  Vectors steps;          // [heads, width], fp32 or bf16
  MambaMixer mixer;
  MambaStates states;

  int64_t row_width() const { return mixer.inner() + mixer.channels(); }
  int64_t projected_width() const { return row_width() + round_up(mixer.heads, kPositions); }
  int64_t query_width() const { return mixer.inner(); }
  int64_t mixed_width() const { return mixer.inner(); }
  int64_t own_floats() const { return 0; }
  template <class Function>
  void each_linear(const Function& f) const {
    f(projection);
    f(out);
  }
};

using Mixer = std::variant<GroupedAttention, LatentAttention, ShortConv, GatedDelta, Mamba2>;

template <class Kind>
constexpr bool kAttends = requires(const Kind& kind) { kind.over; };

struct FfnBlock {
  Norm norm;
  bool routed;                // if false, `experts` holds one expert, applied to all rows
  Gate gate;
  Experts experts;
  bool shares;                // whether the layer has shared experts
  Experts shared;
  const float* shared_gate;   // [width] gate of the shared experts' output, or null
  Norm post_norm;             // of the FFN output, before the residual addition
};

struct Layer {
  Norm norm;                  // of the mixer's input
  Mixer mixer;
  Norm post_norm;             // of the mixer's output, before the residual addition
  FfnBlock ffn;

  // The heads of attention, or null for a recurrent mixer.
  const CachedHeads* heads() const {
    return std::visit([](const auto& one) -> const CachedHeads* {
      if constexpr (kAttends<std::decay_t<decltype(one)>>) return &one.over;
      return nullptr;
    }, mixer);
  }
};

}  // namespace mixtura
