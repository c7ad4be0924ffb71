// Detects at run time which instruction sets the processor and the operating system support.
#pragma once

namespace mixtura {

enum class InstructionSet : int { plain, avx2, avx512, amx };

bool has(InstructionSet set);

}  // namespace mixtura
