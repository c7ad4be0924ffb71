// Measures this machine's limits, with which benchmarks compare the kernels.
#pragma once

#include <cstdint>

#include "machine/cpu.h"

namespace mixtura {

// Reads memory in all threads at full speed. Returns a sum of what it reads, so that the compiler
// keeps the reads.
uint64_t read_bytes(const uint8_t* bytes, int64_t count);

// Multiply-adds per second of all threads together, with all operands in registers or tiles.
double peak_int8(InstructionSet set, double seconds);
double peak_bfloat(double seconds);

namespace limits {

// The work of one thread. Each function is in the file of its instruction set.
uint64_t read_avx512(const uint8_t* bytes, int64_t count);
uint64_t read_avx2(const uint8_t* bytes, int64_t count);
void spin_int8_avx512(int64_t rounds);  // 16 * 64 multiply-adds a round
void spin_int8_avx2(int64_t rounds);    // 8 * 32
void spin_int8_amx(int64_t rounds);     // 4 * 16 * 16 * 64
void spin_bfloat_amx(int64_t rounds);   // 4 * 16 * 16 * 32

}  // namespace limits
}  // namespace mixtura
