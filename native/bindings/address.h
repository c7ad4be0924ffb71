// Python passes tensors as addresses, after it has checked their types, shapes and strides.
#pragma once

#include <cstdint>

namespace mixtura {

template <class Value>
Value* at(uintptr_t address) {
  return reinterpret_cast<Value*>(address);
}

}  // namespace mixtura
