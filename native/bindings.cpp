// The module mixtura.kernels._native.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "address.h"
#include "bindings_attention.h"
#include "bindings_decoder.h"
#include "bindings_packing.h"
#include "draw.h"
#include "experts.h"
#include "linear.h"
#include "measure.h"

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
  const Experts layer{at<const uint8_t>(tiles), stride, num_experts, width, expert_width, bits,
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
  // A command freezes what it loaded (cli/startup.py), and Python frees no frozen object at its
  // end. nanobind would list each of them on stderr; the system takes the memory back.
  nb::set_leak_warnings(false);
  using released = nb::call_guard<nb::gil_scoped_release>;
  module.def("instruction_sets", &instruction_sets);
  module.def("threads", [] { return Pool::shared().threads(); });
  module.def("borrow_threads", [](uintptr_t parallel, uintptr_t thread, uintptr_t threads,
                                  uintptr_t usual_threads) {
    OpenMp openmp;
    openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(parallel);
    openmp.thread = reinterpret_cast<decltype(openmp.thread)>(thread);
    openmp.threads = reinterpret_cast<decltype(openmp.threads)>(threads);
    openmp.usual_threads = reinterpret_cast<decltype(openmp.usual_threads)>(usual_threads);
    Pool::shared().borrow(openmp);
  }, released());
  module.def("set_threads", [](int threads) { Pool::shared().set_threads(threads); }, released());
  module.def("linear", &run_linear, released());
  module.def("experts", &run_experts, released());
  module.def("draw", &run_draw, released());
  module.def("read_bytes", [](uintptr_t address, int64_t count) {
    return read_bytes(reinterpret_cast<const uint8_t*>(address), count);
  }, released());
  module.def("peak_int8", [](int set, double seconds) {
    return peak_int8(static_cast<InstructionSet>(set), seconds);
  }, released());
  module.def("peak_bfloat", &peak_bfloat, released());
  bind_attention(module);
  bind_decoder(module);
  bind_packing(module);
}
