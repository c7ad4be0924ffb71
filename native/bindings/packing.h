#pragma once

#include <nanobind/nanobind.h>

namespace mixtura {

void bind_packing(nanobind::module_& module);

}  // namespace mixtura
