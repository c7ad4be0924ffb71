// Single output channels of packed weights: the rows of an embedding.
#pragma once

#include "packed/format.h"

namespace mixtura {

// out[inputs] = channel `row` of the matrix, times `factor`.
void unpack_row(const Matrix& matrix, int64_t row, float factor, float* out);

}  // namespace mixtura
