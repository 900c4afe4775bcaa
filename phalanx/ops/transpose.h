// Transposed copies of weights, for libraries that multiply by them faster. Not for others.
#pragma once

#include <cstdint>

namespace phalanx {

/// Elements between the rows of a transposed copy of w [rows, columns]: `rows` up to whole vectors.
inline int64_t transposed_stride(int64_t rows) { return (rows + 15) / 16 * 16; }

/// to [columns, transposed_stride(rows)] = w [rows, columns]ᵀ, on the calling thread, for its columns
/// [begin, end) alone (rows of w; begin a multiple of 16, end too or `rows`). `to` is 64-byte aligned; what
/// lies behind `rows` becomes 0.
void transpose_rows(const float* w, int64_t columns, float* to, int64_t rows, int64_t begin, int64_t end);

}  // namespace phalanx
