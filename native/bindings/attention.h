#pragma once

#include <nanobind/nanobind.h>

#include "attention/attention.h"

namespace mixtura {

// Throws std::out_of_range, in Python IndexError, unless 0 <= value < bound.
void check_index(const char* name, int64_t value, int64_t bound);

// The Python object LayerCache: a layer's cache and its number of slots.
struct GivenCache {
  LayerCache cache;
  int64_t slots;

  // Checks that slots and positions are within the cache.
  TokenRows rows(int64_t count, uintptr_t slot, uintptr_t position) const;
};

void bind_attention(nanobind::module_& module);

}  // namespace mixtura
