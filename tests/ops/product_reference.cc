#include "tests/ops/product_reference.h"

namespace phalanx::test {

Values product_reference(Form form, const Tensor& a, const Tensor& b) {
  const Values x = values(a);
  const Values y = values(b);
  const int64_t m = form == Form::tn ? a.dim(1) : a.dim(0);
  const int64_t n = form == Form::nt ? b.dim(0) : b.dim(1);
  const int64_t k = form == Form::tn ? a.dim(0) : a.dim(1);
  Values c(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        sum += x[static_cast<size_t>(form == Form::tn ? l * m + i : i * k + l)] *
               y[static_cast<size_t>(form == Form::nt ? j * k + l : l * n + j)];
      }
      c[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return c;
}

}  // namespace phalanx::test
