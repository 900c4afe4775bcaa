#include "phalanx/parallel/stream_products.h"

#include "phalanx/base/pooled.h"
#include "phalanx/ops/linears.h"

namespace phalanx {

Task<> multiply_gathered(GatherChunks* x, Product product, std::span<const Tensor> w,
                         std::span<const Tensor> y) {
  return each_chunk(x, [product, w, y](RowRun rows, const Tensor& chunk) {
    for (size_t i = 0; i < w.size(); ++i)
      product(y[i].slice(rows.begin, rows.end), chunk, w[i], Into::replace);
  });
}

Task<> linear_gathered(GatherChunks* x, std::span<const Tensor> w, std::span<const Tensor> b,
                       std::span<const Tensor> y) {
  return each_chunk(x, [w, b, y](RowRun rows, const Tensor& chunk) {
    PooledVector<LinearOf> linears;
    for (size_t i = 0; i < w.size(); ++i) {
      linears.push_back({y[i].slice(rows.begin, rows.end), w[i], b[i], {}});
    }
    linears_into(chunk, linears);
  });
}

void multiply_and_send(ReduceChunks& sum, Product product, std::span<const Tensor> x,
                       std::span<const Tensor> w) {
  while (sum.more()) {
    const RowRun rows = sum.rows();
    for (size_t i = 0; i < w.size(); ++i) {
      product(sum.part(), x[i].slice(rows.begin, rows.end), w[i], i == 0 ? Into::replace : Into::add);
    }
    sum.send();
  }
}

}  // namespace phalanx
