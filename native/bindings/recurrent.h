// Recurrent mixers in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <array>

#include "recurrent/delta_mixer.h"
#include "recurrent/mamba_mixer.h"

namespace mixtura {

// `weights`: convolution, rate, bias of the step, norm. `sizes`: heads of keys and of values, dims
// of both, taps.
DeltaMixer delta_mixer_of(const std::array<uintptr_t, 4>& weights, const std::array<int, 5>& sizes,
                          float epsilon);

DeltaStates delta_states_of(const std::array<uintptr_t, 2>& states);

// `weights`: convolution, its bias, rate, bias of the step, skip, norm. `sizes`: heads, their dim,
// state dim, groups, taps. `bounds`: epsilon of the norm, the least and the most step.
MambaMixer mamba_mixer_of(const std::array<uintptr_t, 6>& weights, const std::array<int, 5>& sizes,
                          const std::array<float, 3>& bounds);

MambaStates mamba_states_of(const std::array<uintptr_t, 2>& states);

void bind_recurrent(nanobind::module_& module);

}  // namespace mixtura
