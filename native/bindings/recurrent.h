// Recurrent mixers in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <array>

#include "recurrent/delta_mixer.h"

namespace mixtura {

// `weights`: convolution, rate, bias of the step, norm. `sizes`: heads of keys and of values, dims
// of both, taps.
DeltaMixer delta_mixer_of(const std::array<uintptr_t, 4>& weights, const std::array<int, 5>& sizes,
                          float epsilon);

DeltaStates delta_states_of(const std::array<uintptr_t, 2>& states);

void bind_recurrent(nanobind::module_& module);

}  // namespace mixtura
