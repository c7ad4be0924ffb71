// The inner loops of Mamba-2: what every instruction set implements.
#pragma once

#include <cstdint>

namespace mixtura {

// Rows of one sequence, one after another, for some channels of one head. From one row to the next,
// x, b and c are `stride` numbers apart.
struct MambaSteps {
  int count;
  int state_dim;
  int64_t stride;
  const float* x;
  const float* b;
  const float* c;
  const float* step;   // [count]
  const float* decay;  // [count]
  float skip;
  // Of step i at out + row[i] * out_stride.
  float* out;
  const int64_t* row;
  int64_t out_stride;
};

struct MambaKernels {
  const char* name;
  // Channels that `advance` computes together, at most.
  int columns;

  // out[c] = silu(bias[c] + sum over t < taps of inputs[t][c] weight[t * stride + c]), the first t
  // first and the bias last, for c < dim.
  void (*convolve)(const float* const* inputs, int taps, const float* weight, int64_t stride,
                   const float* bias, int dim, float* out);

  // state[i * stride + c] = decay state + b[i] step x[c], and out[c] = skip x[c] + the sum over i
  // of c[i] state, for c < width, at most `columns`. `tile` has room for state_dim * columns
  // numbers. Every number is computed in one order, however many steps there are.
  void (*advance)(const MambaSteps& steps, float* state, int64_t stride, int width, float* tile);

  // With y = x silu(gate): x = y / sqrt(y . y / dim + epsilon) weight
  void (*gated_norm)(float* x, const float* gate, const float* weight, int dim, float epsilon);
};

const MambaKernels& plain_mamba();
#if defined(__x86_64__)
const MambaKernels& avx2_mamba();
const MambaKernels& avx512_mamba();
#endif

}  // namespace mixtura
