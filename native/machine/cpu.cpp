// This file is compiled without special instructions, since it finds out which may be used.
#include "machine/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mixtura {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!has_avx512() || !__builtin_cpu_supports("avx512bf16")) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  // CPUID leaf 7: bit 22 is AMX-BF16, bit 24 is AMX-TILE.
  if (!(edx >> 22 & 1) || !(edx >> 24 & 1)) return false;
  // A Linux process must request the 8 KiB of tile state: ARCH_REQ_XCOMP_PERM, XTILEDATA.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#endif

bool ask(InstructionSet set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (set) {
    case InstructionSet::plain: return true;
    case InstructionSet::avx2: return has_avx2();
    case InstructionSet::avx512: return has_avx512();
    case InstructionSet::amx: return has_amx();
  }
#endif
  return set == InstructionSet::plain;
}

}  // namespace

bool has(InstructionSet set) {
  static const bool answers[] = {ask(InstructionSet::plain), ask(InstructionSet::avx2),
                                 ask(InstructionSet::avx512), ask(InstructionSet::amx)};
  return answers[static_cast<int>(set)];
}

}  // namespace mixtura
