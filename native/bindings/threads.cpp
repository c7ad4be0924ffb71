// The Python bindings of the thread pool. Both modules have them, since each has a pool of its own.
#include "bindings/threads.h"

#include "machine/pool.h"

namespace nb = nanobind;

namespace mixtura {
namespace {

void borrow_threads(uintptr_t parallel, uintptr_t thread, uintptr_t threads,
                    uintptr_t usual_threads) {
  OpenMp openmp;
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(parallel);
  openmp.thread = reinterpret_cast<decltype(openmp.thread)>(thread);
  openmp.threads = reinterpret_cast<decltype(openmp.threads)>(threads);
  openmp.usual_threads = reinterpret_cast<decltype(openmp.usual_threads)>(usual_threads);
  Pool::shared().borrow(openmp);
}

}  // namespace

void bind_threads(nb::module_& module) {
  using released = nb::call_guard<nb::gil_scoped_release>;
  module.def("threads", [] { return Pool::shared().threads(); });
  module.def("borrow_threads", &borrow_threads, released());
  module.def("set_threads", [](int threads) { Pool::shared().set_threads(threads); }, released());
}

}  // namespace mixtura
