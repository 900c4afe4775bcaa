#include <numeric>

#include "phalanx/ops/matmul.h"
#include "tests/ops/on_device.h"
#include "tests/ops/product_reference.h"

namespace phalanx::test {
namespace {

// Experts' rows, one behind the other, in a capacity that is larger; rows before and behind are garbage.
struct Groups {
  std::vector<int64_t> sizes;
  int64_t before = 0;  // rows that belong to no expert
  int64_t behind = 0;

  int64_t experts() const { return std::ssize(sizes); }
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> o = {before};
    for (const int64_t size : sizes) o.push_back(o.back() + size);
    return o;
  }
  int64_t live() const { return offsets().back(); }
  Rows rows(Random& random, int64_t width, DType dtype) const {
    Rows out = all_rows(random.tensor({live() + behind, width}, dtype));
    out.live.data<int64_t>()[0] = live();
    return out;
  }
};

Tensor matrix(const Tensor& t, int64_t e) { return t.slice(e, e + 1).view({t.dim(1), t.dim(2)}); }

void expect_as_reference(Random& random, const Groups& groups, int64_t n, int64_t k, DType dtype) {
  SCOPED_TRACE(format("offsets {}, {}×{}, {}", groups.offsets(), n, k, dtype_name(dtype)));
  const std::vector<int64_t> o = groups.offsets();
  const Tensor offsets = here(indices64({groups.experts() + 1}, o));
  const Rows x = groups.rows(random, k, dtype);
  const Rows dy = groups.rows(random, n, dtype);
  const Tensor w = random.tensor({groups.experts(), n, k}, dtype);
  const Tensor before = random.tensor(w.shape(), dtype);
  const Tensor y = grouped_matmul_nt(here(x), here(w), offsets).data.to(kCpu);
  const Tensor dx = grouped_matmul(here(dy), here(w), offsets).data.to(kCpu);
  const Tensor sum = copy_here(before);
  const Tensor fresh = copy_here(before);
  grouped_matmul_tn_into(sum, here(dy), here(x), offsets);
  grouped_matmul_tn_into(fresh, here(dy), here(x), offsets, Into::replace);
  const Tensor dw = sum.to(kCpu);
  const Tensor dw_alone = fresh.to(kCpu);
  for (int64_t e = 0; e < groups.experts(); ++e) {
    const auto of_expert = [&](const Tensor& t) {
      return t.slice(o[static_cast<size_t>(e)], o[static_cast<size_t>(e) + 1]);
    };
    const Tensor xe = of_expert(x.data);
    const Tensor dye = of_expert(dy.data);
    const Tensor we = matrix(w, e);
    expect_close(values(of_expert(y)), product_reference(Form::nt, xe, we), sums_of(k, dtype), "y");
    expect_close(values(of_expert(dx)), product_reference(Form::nn, dye, we), sums_of(n, dtype), "dx");
    const Values gradient = product_reference(Form::tn, dye, xe);
    expect_close(values(matrix(dw, e)), plus(values(matrix(before, e)), gradient), sums_of(xe.rows(), dtype),
                 "dw");
    expect_close(values(matrix(dw_alone, e)), gradient, sums_of(xe.rows(), dtype),
                 "dw in place of what was there");
  }
}

}  // namespace

TEST_P(GroupedProduct, IsOneProductForEachExpert) {
  Random random;
  SCOPED_TRACE(random.trace());
  const ThreadScope threads(2);
  for (const DType dtype : kFloats) {
    expect_as_reference(random, {.sizes = {5, 0, 235, 1, 0}, .behind = 9}, 20, 12, dtype);
    expect_as_reference(random, {.sizes = {0, 3, 64, 65, 130}, .before = 7, .behind = 1}, 70, 33, dtype);
    expect_as_reference(random, {.sizes = {1}}, 1, 1, dtype);
    expect_as_reference(random, {.sizes = {0, 0, 0}, .behind = 4}, 9, 17, dtype);
    expect_as_reference(random, {.sizes = {31}}, 64, 0, dtype);
    expect_as_reference(random, {.sizes = std::vector<int64_t>(64, 2), .behind = 100}, 16, 8, dtype);
  }
}

TEST_P(GroupedProduct, TakesNoExpertsAndNoRows) {
  const Rows none = here(all_rows(Tensor::empty({0, 3}, DType::f32)));
  const Tensor no_experts = here(Tensor::zeros({0, 4, 3}, DType::f32));
  EXPECT_EQ(grouped_matmul_nt(none, no_experts, here(indices64({1}, {0}))).capacity(), 0);
  const Tensor offsets = here(indices64({3}, {0, 0, 0}));
  EXPECT_EQ(grouped_matmul(none, here(Tensor::zeros({2, 3, 4}, DType::f32)), offsets).capacity(), 0);
  Random random;
  const Tensor before = random.tensor({2, 3, 3}, DType::f32);
  const Tensor dw = copy_here(before);
  grouped_matmul_tn_into(dw, none, none, offsets);
  EXPECT_TRUE(same_bits(dw, before));
  grouped_matmul_tn_into(dw, none, none, offsets, Into::replace);
  EXPECT_TRUE(same_bits(dw, Tensor::zeros({2, 3, 3}, DType::f32)));
}

TEST_P(GroupedProduct, RefusesWhatDoesNotFit) {
  const Rows x = here(all_rows(Tensor::zeros({3, 4}, DType::f32)));
  const Tensor w = here(Tensor::zeros({2, 5, 4}, DType::f32));
  const auto offsets = [](const std::vector<int64_t>& o) { return here(indices64({std::ssize(o)}, o)); };
  expect_refused([&] { (void)grouped_matmul(x, w, offsets({0, 1, 3})); });
  expect_refused([&] { (void)grouped_matmul_nt(x, w, offsets({0, 3})); });
  expect_refused([&] {
    (void)grouped_matmul_nt(x, here(Tensor::zeros({2, 5, 4}, DType::f64)), offsets({0, 1, 3}));
  });
  for (const auto& wrong : std::vector<std::vector<int64_t>>{{0, 2, 4}, {0, 2, 1}, {-1, 0, 3}}) {
    expect_refused([&] { (void)grouped_matmul_nt(x, w, offsets(wrong)); });
    expect_refused([&] {
      grouped_matmul_tn_into(here(Tensor::zeros({2, 4, 4}, DType::f32)), x, x, offsets(wrong));
    });
  }
}

}  // namespace phalanx::test
