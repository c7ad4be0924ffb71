// Recurrent mixers in Python.
#pragma once

#include <nanobind/nanobind.h>

namespace mixtura {

void bind_recurrent(nanobind::module_& module);

}  // namespace mixtura
