// The module mixtura.kernels._limits, which only benchmarks use.
#include "limits/limits.h"

#include <nanobind/nanobind.h>

#include "bindings/address.h"
#include "bindings/threads.h"

namespace nb = nanobind;

NB_MODULE(_limits, module) {
  using namespace mixtura;
  // The reason is in native.cpp.
  nb::set_leak_warnings(false);
  using released = nb::call_guard<nb::gil_scoped_release>;
  module.def("read_bytes", [](uintptr_t address, int64_t count) {
    return read_bytes(at<const uint8_t>(address), count);
  }, released());
  module.def("peak_int8", [](int set, double seconds) {
    return peak_int8(static_cast<InstructionSet>(set), seconds);
  }, released());
  module.def("peak_bfloat", &peak_bfloat, released());
  bind_threads(module);
}
