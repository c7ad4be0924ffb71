#include "bindings/recurrent.h"

#include <nanobind/stl/array.h>

#include <algorithm>
#include <array>

#include "bindings/address.h"
#include "bindings/attention.h"
#include "recurrent/delta_mixer.h"
#include "recurrent/mamba_mixer.h"

namespace nb = nanobind;

namespace mixtura {

DeltaMixer delta_mixer_of(const std::array<uintptr_t, 4>& weights, const std::array<int, 5>& sizes,
                          float epsilon) {
  const auto [key_heads, value_heads, key_dim, value_dim, taps] = sizes;
  check_index("taps", taps, kTapsMost + 1);
  const auto [conv, rate, step_bias, norm] = weights;
  return {key_heads, value_heads, key_dim, value_dim, taps, at<const float>(conv),
          at<const float>(rate), at<const float>(step_bias), at<const float>(norm), epsilon};
}

DeltaStates delta_states_of(const std::array<uintptr_t, 2>& states) {
  return {at<float>(states[0]), at<float>(states[1])};
}

MambaMixer mamba_mixer_of(const std::array<uintptr_t, 6>& weights, const std::array<int, 5>& sizes,
                          const std::array<float, 3>& bounds) {
  const auto [heads, head_dim, state_dim, groups, taps] = sizes;
  check_index("taps", taps, kTapsMost + 1);
  const auto [conv, conv_bias, rate, step_bias, skip, norm] = weights;
  const auto [epsilon, least_step, most_step] = bounds;
  return {heads, head_dim, state_dim, groups, taps, at<const float>(conv),
          at<const float>(conv_bias), at<const float>(rate), at<const float>(step_bias),
          at<const float>(skip), at<const float>(norm), epsilon, least_step, most_step};
}

MambaStates mamba_states_of(const std::array<uintptr_t, 2>& states) {
  return {at<float>(states[0]), at<float>(states[1])};
}

namespace {

// The order of addresses and counts that the wrapper in kernels/gated_delta/rows.py passes.
void run_delta_mixer(uintptr_t projected, uintptr_t gates,
                     const std::array<uintptr_t, 4>& weights,
                     const std::array<uintptr_t, 2>& states,
                     const std::array<uintptr_t, 3>& rows_of,
                     const std::array<int64_t, 3>& counts, const std::array<int, 5>& shape,
                     float epsilon, int set, uintptr_t out) {
  const auto [rows, slots, sequences] = counts;
  const DeltaMixer mixer = delta_mixer_of(weights, shape, epsilon);
  const DeltaStates kept = delta_states_of(states);
  const SequenceRows given{sequences, at<const int64_t>(rows_of[0]), at<const int64_t>(rows_of[1]),
                           at<const int64_t>(rows_of[2])};
  for (int64_t i = 0; i < sequences; ++i) check_index("slot", given.slot[i], slots);
  for (int64_t i = 0; i < given.count(); ++i) check_index("row", given.row[i], rows);
  const DeltaInput input{at<const float>(projected), mixer.channels() + mixer.values(),
                         at<const float>(gates), int64_t{2} * mixer.value_heads, kPositions};
  const auto isa = static_cast<InstructionSet>(set);
  Pool::shared().run(delta_scratch(mixer, isa), [&](Team& team, uint8_t* shared, uint8_t* own) {
    mix_delta(team, mixer, kept, given, input, isa, shared, own, at<float>(out), mixer.values());
  });
}

// The order of addresses and counts that the wrapper in kernels/mamba2/rows.py passes.
void run_mamba_mixer(uintptr_t projected, uintptr_t steps, const std::array<uintptr_t, 6>& weights,
                     const std::array<uintptr_t, 2>& states,
                     const std::array<uintptr_t, 3>& rows_of,
                     const std::array<int64_t, 3>& counts, const std::array<int, 5>& sizes,
                     const std::array<float, 3>& bounds, int set, uintptr_t out) {
  const auto [rows, slots, sequences] = counts;
  const MambaMixer mixer = mamba_mixer_of(weights, sizes, bounds);
  const MambaStates kept = mamba_states_of(states);
  const SequenceRows given{sequences, at<const int64_t>(rows_of[0]), at<const int64_t>(rows_of[1]),
                           at<const int64_t>(rows_of[2])};
  for (int64_t i = 0; i < sequences; ++i) check_index("slot", given.slot[i], slots);
  for (int64_t i = 0; i < given.count(); ++i) check_index("row", given.row[i], rows);
  const MambaInput input{at<const float>(projected), mixer.inner() + mixer.channels(),
                         at<const float>(steps), mixer.heads, kPositions};
  const auto isa = static_cast<InstructionSet>(set);
  Pool::shared().run(mamba_scratch(mixer, isa), [&](Team& team, uint8_t* shared, uint8_t* own) {
    mix_mamba(team, mixer, kept, given, input, isa, shared, own, at<float>(out), mixer.inner());
  });
}

}  // namespace

void bind_recurrent(nb::module_& module) {
  module.def("mamba_mixer", &run_mamba_mixer, nb::call_guard<nb::gil_scoped_release>());
  module.def("delta_mixer", &run_delta_mixer, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace mixtura
