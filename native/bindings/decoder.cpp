// The Python bindings of the fused step, for the module in native.cpp. The Python caller keeps the
// tensors of each added layer alive.
#include "bindings/decoder.h"

#include <nanobind/stl/array.h>

#include <array>
#include <stdexcept>

#include "bindings/address.h"
#include "bindings/attention.h"
#include "bindings/recurrent.h"
#include "decoder/decoder.h"

namespace nb = nanobind;

namespace mixtura {
namespace {

void bind_parts(nb::module_& module) {
  nb::class_<Norm>(module, "Norm")
      .def("__init__", [](Norm* self, int kind, uintptr_t weight, uintptr_t bias, float epsilon) {
        new (self) Norm{static_cast<Norm::Kind>(kind), at<const float>(weight),
                        at<const float>(bias), epsilon};
      });
  nb::class_<Linear>(module, "Linear")
      .def("__init__", [](Linear* self, uintptr_t tiles, int outputs, int inputs, int bits,
                          uintptr_t bias) {
        new (self) Linear{{at<const uint8_t>(tiles), outputs, inputs, bits}, at<const float>(bias)};
      });
  nb::class_<Experts>(module, "Experts")
      .def("__init__", [](Experts* self, uintptr_t table, int64_t num_experts, int width,
                          int expert_width, int bits, int activation, uintptr_t bias_in,
                          uintptr_t bias_out) {
        new (self) Experts{at<const uint8_t* const>(table), num_experts, width, expert_width, bits,
                           static_cast<Activation>(activation), at<const float>(bias_in),
                           at<const float>(bias_out)};
      });
  nb::class_<Gate>(module, "Gate")
      .def("__init__", [](Gate* self, uintptr_t weight, int kept, int width, uintptr_t bias,
                          uintptr_t choosing, int num_experts, int top_k, int score, int weigh,
                          float norm, float scale, int groups, int groups_kept, int group_top) {
        new (self) Gate{{at<const void>(weight), static_cast<Kept>(kept), width, width},
                        at<const float>(bias), at<const float>(choosing), num_experts, top_k,
                        static_cast<Score>(score), static_cast<Weigh>(weigh), norm, scale, groups,
                        groups_kept, group_top};
      });
}

void bind_blocks(nb::module_& module) {
  nb::class_<CachedHeads>(module, "CachedHeads")
      .def("__init__", [](CachedHeads* self, const Linear& out, int heads, float scale,
                          int64_t window, uintptr_t sinks, uintptr_t cosines, uintptr_t sines,
                          int rope_dim, const GivenCache& cache) {
        new (self) CachedHeads{out, heads, scale, window, at<const float>(sinks),
                               at<const float>(cosines), at<const float>(sines), rope_dim,
                               cache.cache};
      });
  nb::class_<GroupedAttention>(module, "GroupedAttention")
      .def("__init__", [](GroupedAttention* self, const CachedHeads& over, const Linear& qkv,
                          const Norm& q_norm, const Norm& k_norm, bool norm_of_all, float clip,
                          const Linear* output_gate) {
        new (self) GroupedAttention{over, qkv, q_norm, k_norm, norm_of_all, clip,
                                    output_gate != nullptr,
                                    output_gate != nullptr ? *output_gate : Linear{}};
      }, nb::arg("over"), nb::arg("qkv"), nb::arg("q_norm"), nb::arg("k_norm"),
         nb::arg("norm_of_all"), nb::arg("clip"), nb::arg("output_gate").none());
  nb::class_<LatentAttention>(module, "LatentAttention")
      .def("__init__", [](LatentAttention* self, const CachedHeads& over,
                          const Linear* query_down, const Norm& query_norm, const Linear& query,
                          const Linear& kv_down, const Norm& kv_norm, uintptr_t kv_up, int kept,
                          int nope_dim, int value_dim) {
        new (self) LatentAttention{over, query_down != nullptr,
                                   query_down != nullptr ? *query_down : Linear{}, query_norm,
                                   query, kv_down, kv_norm, at<const uint8_t>(kv_up),
                                   static_cast<Kept>(kept), nope_dim, value_dim};
      }, nb::arg("over"), nb::arg("query_down").none(), nb::arg("query_norm"), nb::arg("query"),
         nb::arg("kv_down"), nb::arg("kv_norm"), nb::arg("kv_up"), nb::arg("kept"),
         nb::arg("nope_dim"), nb::arg("value_dim"));
  nb::class_<ShortConv>(module, "ShortConv")
      .def("__init__", [](ShortConv* self, const Linear& projection, const Linear& out,
                          uintptr_t weight, uintptr_t bias, int kernel, uintptr_t state) {
        new (self) ShortConv{projection, out, at<const float>(weight), at<const float>(bias),
                             kernel, at<float>(state)};
      });
  nb::class_<GatedDelta>(module, "GatedDelta")
      .def("__init__", [](GatedDelta* self, const Linear& projection, const Linear& out,
                          uintptr_t gates, int kept, int width,
                          const std::array<uintptr_t, 4>& weights,
                          const std::array<uintptr_t, 2>& states, const std::array<int, 5>& sizes,
                          float epsilon) {
        new (self) GatedDelta{projection, out,
                              {at<const void>(gates), static_cast<Kept>(kept), width, width},
                              delta_mixer_of(weights, sizes, epsilon), delta_states_of(states)};
      });
  nb::class_<Mamba2>(module, "Mamba2")
      .def("__init__", [](Mamba2* self, const Linear& projection, const Linear& out,
                          uintptr_t steps, int kept, int width,
                          const std::array<uintptr_t, 6>& weights,
                          const std::array<uintptr_t, 2>& states, const std::array<int, 5>& sizes,
                          const std::array<float, 3>& bounds) {
        new (self) Mamba2{projection, out,
                          {at<const void>(steps), static_cast<Kept>(kept), width, width},
                          mamba_mixer_of(weights, sizes, bounds), mamba_states_of(states)};
      });
  nb::class_<FfnBlock>(module, "FfnBlock")
      .def("__init__", [](FfnBlock* self, const Norm& norm, const Gate* gate,
                          const Experts& experts, const Experts* shared, uintptr_t shared_gate,
                          const Norm& post_norm) {
        new (self) FfnBlock{norm, gate != nullptr, gate != nullptr ? *gate : Gate{}, experts,
                            shared != nullptr, shared != nullptr ? *shared : Experts{},
                            at<const float>(shared_gate), post_norm};
      }, nb::arg("norm"), nb::arg("gate").none(), nb::arg("experts"), nb::arg("shared").none(),
         nb::arg("shared_gate"), nb::arg("post_norm"));
}

template <class Mixer>
void add(Program& program, const Norm& norm, const Mixer& mixer, const Norm& post_norm,
         const FfnBlock& ffn) {
  program.add({norm, mixer, post_norm, ffn});
}

StepRows rows_of(const Program& program, const GivenCache& cache, int64_t angles, uintptr_t token,
                 int64_t rows, uintptr_t slot, uintptr_t position, uintptr_t angle,
                 uintptr_t asked, int64_t asked_count, int phase) {
  const StepRows given{cache.rows(rows, slot, position), at<const int64_t>(angle),
                       at<const int64_t>(token), at<const int64_t>(asked),
                       static_cast<int>(asked_count), static_cast<Phase>(phase)};
  for (int row = 0; row < given.rows.count; ++row) {
    check_index("angle", given.angle[row], angles);
    check_index("token", given.token[row], program.vocabulary());
  }
  for (int i = 0; i < given.asked_count; ++i) check_index("asked row", given.asked[i], rows);
  return given;
}

void step(Program& program, const GivenCache& cache, int64_t angles, uintptr_t token, int64_t rows,
          uintptr_t slot, uintptr_t position, uintptr_t angle, uintptr_t asked, int64_t asked_count,
          int phase, int set, uintptr_t logits) {
  const StepRows given = rows_of(program, cache, angles, token, rows, slot, position, angle, asked,
                                 asked_count, phase);
  program.step(given, {}, static_cast<InstructionSet>(set), at<float>(logits));
}

// As `step`, with outputs and limits of routing: see Routes. `between` is None or a function that
// takes a layer's number.
void step_routed(Program& program, const GivenCache& cache, int64_t angles, uintptr_t token,
                 int64_t rows, uintptr_t slot, uintptr_t position, uintptr_t angle,
                 uintptr_t asked, int64_t asked_count, int phase, int set, uintptr_t logits,
                 uintptr_t expert, uintptr_t weight, uintptr_t limit, const nb::object& between) {
  const StepRows given = rows_of(program, cache, angles, token, rows, slot, position, angle, asked,
                                 asked_count, phase);
  Routes routes{at<int64_t>(expert), at<float>(weight), at<const int64_t>(limit), {}};
  for (int row = 0; routes.limit != nullptr && row < given.rows.count; ++row) {
    if (routes.limit[row] < 1) throw std::out_of_range("a limit of experts must be 1 or more");
  }
  if (!between.is_none()) {
    routes.between = [&between](int layer) {
      nb::gil_scoped_acquire held;
      between(layer);
    };
  }
  nb::gil_scoped_release released;
  program.step(given, routes, static_cast<InstructionSet>(set), at<float>(logits));
}

}  // namespace

void bind_decoder(nb::module_& module) {
  bind_parts(module);
  bind_blocks(module);
  nb::class_<Program>(module, "Program")
      .def("__init__", [](Program* self, const Linear& embedding, float embedded, float residual,
                          const Norm& norm, const Linear& head, float logits) {
        new (self) Program(embedding.matrix, embedded, residual, norm, head, logits);
      })
      .def("add", &add<GroupedAttention>)
      .def("add", &add<LatentAttention>)
      .def("add", &add<ShortConv>)
      .def("add", &add<GatedDelta>)
      .def("add", &add<Mamba2>)
      .def("step", &step, nb::call_guard<nb::gil_scoped_release>())
      .def("step_routed", &step_routed, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg().none());
}

}  // namespace mixtura
