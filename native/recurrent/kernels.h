// The inner loops of recurrent mixers: what every instruction set implements.
#pragma once

#include <cstdint>

namespace mixtura {

// Columns of a state that are computed together, at most: they stay in a core's first cache while
// all rows of a block pass.
constexpr int kColumnsMost = 32;

// Rows of one sequence, one after another, for one value head. From one row to the next, q, k and v
// are `stride` numbers apart, and decay, beta and match `heads`.
struct DeltaSteps {
  int count;
  int key_dim;
  int64_t stride;
  int64_t heads;
  const float* q;
  const float* k;
  const float* v;
  const float* decay;
  const float* beta;
  // q . k
  const float* match;
  // Of step i at out + row[i] * out_stride.
  float* out;
  const int64_t* row;
  int64_t out_stride;
};

struct DeltaKernels {
  const char* name;
  // Columns that `advance` computes together.
  int columns;

  // out[c] = silu(sum over t < taps of inputs[t][c] weight[t * stride + c]), the first t first, for
  // c < dim; out is padded, and 0 there.
  void (*convolve)(const float* const* inputs, int taps, const float* weight, int64_t stride,
                   int dim, float* out);

  // x *= factor / sqrt(x . x + epsilon); x is padded by zeros.
  void (*set_length)(float* x, int dim, float epsilon, float factor);

  // a . b; both are padded by zeros.
  float (*dot)(const float* a, const float* b, int dim);

  // The delta rule for `width` columns, at most `columns`, of a head's state: state[i * stride + c]
  // with i < key_dim. v and out begin at the first of these columns, and v is padded. `tile` has
  // room for key_dim * columns numbers. Every number is computed in one order, however many steps
  // there are. As many columns are fetched from `ahead` on, which are read next.
  void (*advance)(const DeltaSteps& steps, float* state, int64_t stride, int width,
                  const float* ahead, float* tile);

  // x = x / sqrt(x . x / dim + epsilon) weight silu(gate)
  void (*norm)(float* x, const float* gate, const float* weight, int dim, float epsilon);
};

const DeltaKernels& plain_delta();
#if defined(__x86_64__)
const DeltaKernels& avx2_delta();
const DeltaKernels& avx512_delta();
#endif

}  // namespace mixtura
