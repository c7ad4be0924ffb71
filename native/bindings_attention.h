#pragma once

#include <nanobind/nanobind.h>

namespace mixtura {

void bind_attention(nanobind::module_& module);

}  // namespace mixtura
