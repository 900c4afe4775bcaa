#include "phalanx/parallel/stream_products.h"

#include "phalanx/base/pooled.h"
#include "phalanx/ops/linears.h"

namespace phalanx {

Task<> linear_gathered(GatherChunks* x, RowNorm norm, std::span<const Tensor> w, std::span<const Tensor> b,
                       std::span<const Tensor> y) {
  return each_chunk(x, [norm = std::move(norm), w, b, y](RowRun rows, const Tensor& chunk) {
    PooledVector<LinearOf> linears;
    for (size_t i = 0; i < w.size(); ++i) {
      linears.push_back({y[i].slice(rows.begin, rows.end), w[i], b[i], {}});
    }
    linears_into(chunk, linears, norm);
  });
}

}  // namespace phalanx
