#pragma once

#include <nanobind/nanobind.h>

namespace mixtura {

// The threads of the module's own pool: `threads`, `set_threads` and `borrow_threads`.
void bind_threads(nanobind::module_& module);

}  // namespace mixtura
