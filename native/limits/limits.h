// The limits of this machine, measured beside what is compared with them.
#pragma once

#include <cstdint>

#include "machine/cpu.h"

namespace mixtura {

// Reads every line once, in all threads, as fast as it can; gives something that depends on all.
uint64_t read_bytes(const uint8_t* bytes, int64_t count);

// Multiply-adds a second of all threads, on registers or tiles alone.
double peak_int8(InstructionSet set, double seconds);
double peak_bfloat(double seconds);

namespace limits {

// One thread's parts, each in the file of its instruction set.
uint64_t read_avx512(const uint8_t* bytes, int64_t count);
uint64_t read_avx2(const uint8_t* bytes, int64_t count);
void spin_int8_avx512(int64_t rounds);  // 16 * 64 multiply-adds a round
void spin_int8_avx2(int64_t rounds);    // 8 * 32
void spin_int8_amx(int64_t rounds);     // 4 * 16 * 16 * 64
void spin_bfloat_amx(int64_t rounds);   // 4 * 16 * 16 * 32

}  // namespace limits
}  // namespace mixtura
