// Which instruction sets this processor and system offer; asked at run time, once.
#pragma once

#include "kernels.h"

namespace mixtura {

enum class InstructionSet : int { plain, avx2, avx512, amx };

bool has(InstructionSet set);
InstructionSet best_set();

// The int8 kernels of a set; AMX computes its int8 products in AVX-512.
const Kernels& kernels_of(InstructionSet set);

}  // namespace mixtura
