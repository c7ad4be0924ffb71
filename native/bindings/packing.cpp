// The Python bindings of packing and of reading GGUF's blocks, for the module in native.cpp.
#include "bindings/packing.h"

#include "bindings/address.h"
#include "gguf/blocks.h"
#include "packing/packing.h"

namespace nb = nanobind;

namespace mixtura {
namespace {

bool run_quantise(uintptr_t w, int kind, int64_t groups, uintptr_t tried, int count, float low,
                  float high, float bound, int set, uintptr_t q, uintptr_t scale) {
  const Levels levels{at<const float>(tried), count, low, high, bound};
  return quantise_groups(at<const void>(w), static_cast<Kind>(kind), groups, levels,
                         static_cast<InstructionSet>(set), at<int8_t>(q), at<uint16_t>(scale));
}

void run_tile(uintptr_t q, uintptr_t scale, int64_t rows, int64_t inputs, int bits, bool gated,
              int set, uintptr_t out) {
  const Numbers numbers{at<const int8_t>(q), at<const uint16_t>(scale), rows, inputs, bits};
  tile_numbers(numbers, gated, static_cast<InstructionSet>(set), at<uint8_t>(out));
}

void run_unpack_blocks(int kind, uintptr_t blocks, int64_t count, int set, uintptr_t out) {
  unpack_blocks(static_cast<GgufKind>(kind), at<const uint8_t>(blocks), count,
                static_cast<InstructionSet>(set), at<float>(out));
}

bool run_quantise_blocks(int kind, uintptr_t blocks, int64_t count, uintptr_t tried,
                         int tried_count, float low, float high, float bound, int set, uintptr_t q,
                         uintptr_t scale) {
  const Levels levels{at<const float>(tried), tried_count, low, high, bound};
  return quantise_blocks(static_cast<GgufKind>(kind), at<const uint8_t>(blocks), count, levels,
                         static_cast<InstructionSet>(set), at<int8_t>(q), at<uint16_t>(scale));
}

}  // namespace

void bind_packing(nb::module_& module) {
  using released = nb::call_guard<nb::gil_scoped_release>;
  module.def("quantise_groups", &run_quantise, released());
  module.def("quantise_blocks", &run_quantise_blocks, released());
  module.def("tile_numbers", &run_tile, released());
  module.def("unpack_blocks", &run_unpack_blocks, released());
}

}  // namespace mixtura
