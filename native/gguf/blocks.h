// Unpacks llama.cpp's K-quants to fp32. The Python reference is the package gguf, by way of
// src/mixtura/checkpoints/gguf/block_numbers.py.
#pragma once

#include <cstdint>

#include "machine/cpu.h"

namespace mixtura {

// The numbers that ggml gives to its formats.
enum class GgufKind : int { q2_k = 10, q3_k = 11, q4_k = 12, q5_k = 13, q6_k = 14 };

// The weights of a block of any K-quant.
constexpr int64_t kBlockWeights = 256;

constexpr int64_t bytes_of(GgufKind kind) {
  switch (kind) {
    case GgufKind::q2_k: return 84;
    case GgufKind::q3_k: return 110;
    case GgufKind::q4_k: return 144;
    case GgufKind::q5_k: return 176;
    case GgufKind::q6_k: return 210;
  }
  return 0;
}

// Unpacks `count` blocks in one thread. All instruction sets give the same bits.
using UnpackBlocks = void (*)(GgufKind kind, const uint8_t* blocks, int64_t count, float* out);

UnpackBlocks plain_unpack();
#if defined(__x86_64__)
UnpackBlocks avx2_unpack();
UnpackBlocks avx512_unpack();
#endif

UnpackBlocks unpack_of(InstructionSet set);

// Unpacks blocks in all threads of the pool.
void unpack_blocks(GgufKind kind, const uint8_t* blocks, int64_t count, InstructionSet set,
                   float* out);

}  // namespace mixtura
