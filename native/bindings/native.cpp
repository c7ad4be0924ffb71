// The module mixtura.kernels._native.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "bindings/address.h"
#include "bindings/attention.h"
#include "bindings/decoder.h"
#include "bindings/packing.h"
#include "bindings/recurrent.h"
#include "bindings/threads.h"
#include "decoder/draw.h"
#include "packed/experts.h"
#include "packed/linear.h"

namespace nb = nanobind;

namespace mixtura {
namespace {

void run_linear(uintptr_t x, int64_t rows, uintptr_t tiles, int outputs, int inputs, int bits,
                uintptr_t bias, int phase, int set, uintptr_t out) {
  const Linear layer{{at<const uint8_t>(tiles), outputs, inputs, bits}, at<const float>(bias)};
  const auto which = static_cast<Phase>(phase);
  const auto isa = static_cast<InstructionSet>(set);
  const Scratch scratch = linear_scratch(layer, rows, which, isa);
  Pool::shared().run(scratch, [&](Team& team, uint8_t* shared, uint8_t* own) {
    linear(team, layer, at<const float>(x), inputs, rows, which, isa, shared, own, at<float>(out),
           outputs);
  });
}

void run_experts(uintptr_t x, int64_t tokens, uintptr_t token, uintptr_t expert, uintptr_t weight,
                 int64_t rows, uintptr_t tiles, int64_t stride, int64_t num_experts, int width,
                 int expert_width, int bits, int activation, uintptr_t bias_in, uintptr_t bias_out,
                 int phase, int set, uintptr_t out) {
  std::vector<const uint8_t*> table(num_experts);
  for (int64_t i = 0; i < num_experts; ++i) table[i] = at<const uint8_t>(tiles) + i * stride;
  const Experts layer{table.data(), num_experts, width, expert_width, bits,
                      static_cast<Activation>(activation), at<const float>(bias_in),
                      at<const float>(bias_out)};
  const Routed routed{at<const int64_t>(token), at<const int64_t>(expert), at<const float>(weight),
                      rows, tokens};
  const auto which = static_cast<Phase>(phase);
  const auto isa = static_cast<InstructionSet>(set);
  const Scratch scratch = experts_scratch(layer, rows, tokens, which, isa);
  Pool::shared().run(scratch, [&](Team& team, uint8_t* shared, uint8_t* own) {
    experts(team, layer, at<const float>(x), routed, which, isa, shared, own, at<float>(out));
  });
}

std::vector<int64_t> run_draw(uintptr_t logits, int64_t vocabulary,
                              const std::vector<int64_t>& number,
                              const std::vector<double>& temperature,
                              const std::vector<double>& uniform) {
  const Draws draws{at<const float>(logits), vocabulary, number.data(),
                    static_cast<int64_t>(number.size()), temperature.data(), uniform.data()};
  std::vector<int64_t> token(number.size());
  Pool::shared().run(draw_scratch(draws), [&](Team& team, uint8_t* shared, uint8_t*) {
    draw(team, draws, shared, token.data());
  });
  return token;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  const char* all[] = {"plain", "avx2", "avx512", "amx"};
  for (int set = 0; set < 4; ++set) {
    if (has(static_cast<InstructionSet>(set))) names.emplace_back(all[set]);
  }
  return names;
}

}  // namespace
}  // namespace mixtura

NB_MODULE(_native, module) {
  using namespace mixtura;
  // Commands freeze loaded objects (gc.freeze in cli/startup.py), and Python does not free frozen
  // objects at exit. nanobind would report each of them as a leak on stderr.
  nb::set_leak_warnings(false);
  using released = nb::call_guard<nb::gil_scoped_release>;
  module.def("instruction_sets", &instruction_sets);
  module.def("linear", &run_linear, released());
  module.def("experts", &run_experts, released());
  module.def("draw", &run_draw, released());
  bind_attention(module);
  bind_decoder(module);
  bind_packing(module);
  bind_recurrent(module);
  bind_threads(module);
}
