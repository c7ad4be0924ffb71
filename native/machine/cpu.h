// Which instruction sets this processor and system offer; asked at run time, once.
#pragma once

namespace mixtura {

enum class InstructionSet : int { plain, avx2, avx512, amx };

bool has(InstructionSet set);

}  // namespace mixtura
