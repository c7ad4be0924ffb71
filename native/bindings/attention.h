#pragma once

#include <nanobind/nanobind.h>

#include "attention/attention.h"

namespace mixtura {

// Raises IndexError, in Python's words.
void check_index(const char* name, int64_t value, int64_t bound);

// A layer's cache, as Python holds it.
struct GivenCache {
  LayerCache cache;
  int64_t slots;

  TokenRows rows(int64_t count, uintptr_t slot, uintptr_t position) const;
};

void bind_attention(nanobind::module_& module);

}  // namespace mixtura
