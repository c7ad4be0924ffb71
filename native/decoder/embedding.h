// Reading rows of a packed embedding. A row is one output channel of the packed matrix.
#pragma once

#include "packed/format.h"

namespace mixtura {

// Writes output channel `row` of the matrix, times `factor`, to out[matrix.inputs].
void unpack_row(const Matrix& matrix, int64_t row, float factor, float* out);

}  // namespace mixtura
