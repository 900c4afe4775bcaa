#include "phalanx/parallel/stream_products.h"

namespace phalanx {

Task<> multiply_gathered(GatherChunks* x, Product product, std::span<const Tensor> w,
                         std::span<const Tensor> y) {
  while (x->more()) {
    const RowRun rows = co_await x->next();
    const Tensor chunk = x->all().slice(rows.begin, rows.end);
    for (size_t i = 0; i < w.size(); ++i)
      product(y[i].slice(rows.begin, rows.end), chunk, w[i], Into::replace);
  }
}

Task<> linear_gathered(GatherChunks* x, std::span<const Tensor> w, std::span<const Tensor> b,
                       std::span<const Tensor> y) {
  while (x->more()) {
    const RowRun rows = co_await x->next();
    const Tensor chunk = x->all().slice(rows.begin, rows.end);
    for (size_t i = 0; i < w.size(); ++i) {
      linear_into(y[i].slice(rows.begin, rows.end), chunk, w[i], b[i]);
    }
  }
}

Task<> linear_gelu_gathered(GatherChunks* x, GeluWeights of, GeluRows out) {
  while (x->more()) {
    const RowRun rows = co_await x->next();
    const GeluRows to = {out.h.slice(rows.begin, rows.end), out.a.slice(rows.begin, rows.end)};
    linear_gelu_into(to, x->all().slice(rows.begin, rows.end), of.w_NK, of.b_N, of.kind);
  }
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
