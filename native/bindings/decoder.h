#pragma once

#include <nanobind/nanobind.h>

namespace mixtura {

void bind_decoder(nanobind::module_& module);

}  // namespace mixtura
