// Grouped products of bf16 on a GPU: products are exact in f32, so results lie as far from those of the f32
// kernel as sums in another order do, and bf16 ones are rounded once.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "phalanx/ops/matmul.h"
#include "tests/ops/bf16_on_gpu.h"
#include "tests/ops/grouped_case.h"

namespace phalanx::test {
namespace {

using Case = GroupedCase;

// Tiles are 128×256 and stages 64 terms; a round has 132 tiles.
std::vector<Case> cases(Random& random) {
  return {{{1}, 8, 8},
          {{1000}, 520, 328, 0, 24},
          {{5, 0, 130, 1, 64, 129}, 264, 72, 3, 60},
          {{0, 200, 0, 3, 0}, 136, 200, 0, 7},
          {{0, 0, 0}, 64, 128, 0, 5},
          {{128, 256, 384}, 512, 256},
          {{65, 63}, 1400, 64, 1, 1},
          {{77, 3}, 20, 12, 0, 9},  // rows that TMA cannot read
          {random_sizes(random, 64, 70), 72, 136, 0, 11},
          {random_sizes(random, 8, 700), 1032, 520, 0, 100},
          {random_sizes(random, 300, 9), 40, 24}};
}

class GroupedBf16 : public Bf16OnGpu {
 protected:
  // Rows of no expert are NaN.
  Rows draw_rows(const Case& c, int64_t width) {
    const Tensor t = random_.tensor({c.capacity(), width}, DType::f32);
    const std::span<float> all = t.span<float>();
    const std::vector<int64_t> o = c.offsets();
    std::fill_n(all.begin(), o.front() * width, std::numeric_limits<float>::quiet_NaN());
    std::fill(all.begin() + o.back() * width, all.end(), std::numeric_limits<float>::quiet_NaN());
    Rows rows = all_rows(narrow(t));
    rows.live = indices64({1}, {o.back()}).to(kGpu);
    return rows;
  }
  static Tensor offsets_of(const Case& c) { return indices64({c.experts() + 1}, c.offsets()).to(kGpu); }
  static Values live(const Rows& rows, const Case& c) {
    const std::vector<int64_t> o = c.offsets();
    return values(rows.data.slice(o.front(), o.back()));
  }
  static Tolerance rounded(int64_t terms) {
    return within(0.6, DType::bf16, 0.01 * std::sqrt(static_cast<double>(terms)));
  }
  static int64_t most_rows(const Case& c) { return *std::ranges::max_element(c.sizes); }
};

std::string name(const Case& c) { return format("offsets {}, n {}, k {}", c.offsets(), c.n, c.k); }

TEST_F(GroupedBf16, ForwardIsThatOfF32RoundedOnce) {
  for (const Case& c : cases(random_)) {
    SCOPED_TRACE(name(c));
    const Tensor offsets = offsets_of(c);
    const Rows x = draw_rows(c, c.k);
    const Rows dy = draw_rows(c, c.n);
    const Tensor w = draw({c.experts(), c.n, c.k});
    const Rows y = grouped_matmul_nt(x, w, offsets);
    const Rows dx = grouped_matmul(dy, w, offsets);
    EXPECT_EQ(y.data.dtype(), DType::bf16);
    expect_close(live(y, c), live(grouped_matmul_nt(wide(x), wide(w), offsets), c), rounded(c.k), "y");
    expect_close(live(dx, c), live(grouped_matmul(wide(dy), wide(w), offsets), c), rounded(c.n), "dx");
    const std::vector<int64_t> o = c.offsets();
    const auto same = [&](const Rows& a, const Rows& b) {
      return same_bits(a.data.slice(o.front(), o.back()), b.data.slice(o.front(), o.back()));
    };
    EXPECT_TRUE(same(y, grouped_matmul_nt(x, w, offsets))) << "y, once more";
    EXPECT_TRUE(same(dx, grouped_matmul(dy, w, offsets))) << "dx, once more";
  }
}

TEST_F(GroupedBf16, WeightGradientsAreSummedInF32) {
  for (const Case& c : cases(random_)) {
    SCOPED_TRACE(name(c));
    const Tensor offsets = offsets_of(c);
    const Rows x = draw_rows(c, c.k);
    const Rows dy = draw_rows(c, c.n);
    const Shape shape = {c.experts(), c.n, c.k};
    const Tensor before = random_.tensor(shape, DType::f32).to(kGpu);
    const Tensor before_narrow = narrow(before);
    const int64_t terms = std::max<int64_t>(1, most_rows(c));
    for (const Into into : {Into::add, Into::replace}) {
      SCOPED_TRACE(into == Into::add ? "added" : "in place of what was there");
      const Tensor want = copied(before);
      const Tensor want_narrow = wide(before_narrow);
      for (const Tensor& t : {want, want_narrow}) grouped_matmul_tn_into(t, wide(dy), wide(x), offsets, into);
      const Tensor dw = copied(before);
      const Tensor dw_narrow = copied(before_narrow);
      for (const Tensor& t : {dw, dw_narrow}) grouped_matmul_tn_into(t, dy, x, offsets, into);
      expect_close(values(dw), values(want), within(64, DType::f32, std::sqrt(static_cast<double>(terms))),
                   "dw in f32");
      expect_close(values(dw_narrow), values(want_narrow), rounded(terms), "dw in bf16");
      const Tensor again = copied(before);
      grouped_matmul_tn_into(again, dy, x, offsets, into);
      EXPECT_TRUE(same_bits(again, dw)) << "once more";
    }
  }
}

// Whatever the others have, an expert's results are those that it gets alone.
TEST_F(GroupedBf16, AnExpertsBitsAreItsOwn) {
  const Case c = {{70, 0, 300, 129, 1, 64}, 264, 136, 5, 50};
  const Tensor offsets = offsets_of(c);
  const Rows x = draw_rows(c, c.k);
  const Rows dy = draw_rows(c, c.n);
  const Tensor w = draw({c.experts(), c.n, c.k});
  const Rows y = grouped_matmul_nt(x, w, offsets);
  const Rows dx = grouped_matmul(dy, w, offsets);
  const Tensor dw = Tensor::empty(w.shape(), DType::f32, kGpu);
  grouped_matmul_tn_into(dw, dy, x, offsets, Into::replace);
  const std::vector<int64_t> o = c.offsets();
  for (int64_t e = 0; e < c.experts(); ++e) {
    SCOPED_TRACE(format("expert {}", e));
    const int64_t begin = o[static_cast<size_t>(e)];
    const int64_t end = o[static_cast<size_t>(e) + 1];
    const auto of_expert = [&](const Rows& rows) { return copied(rows.data.slice(begin, end)); };
    const Tensor alone = indices64({2}, {0, end - begin}).to(kGpu);
    const Rows xe = all_rows(of_expert(x));
    const Rows dye = all_rows(of_expert(dy));
    const Tensor we = w.slice(e, e + 1);
    EXPECT_TRUE(same_bits(of_expert(y), grouped_matmul_nt(xe, we, alone).data));
    EXPECT_TRUE(same_bits(of_expert(dx), grouped_matmul(dye, we, alone).data));
    const Tensor dwe = Tensor::empty(we.shape(), DType::f32, kGpu);
    grouped_matmul_tn_into(dwe, dye, xe, alone, Into::replace);
    EXPECT_TRUE(same_bits(dw.slice(e, e + 1), dwe));
  }
}

// The result lies where a marked tensor was: rows of no expert keep its marks.
TEST_F(GroupedBf16, RowsOfNoExpertAreLeftAlone) {
  const Case c = {{100, 0, 33, 131}, 264, 72, 9, 200};
  const Tensor offsets = offsets_of(c);
  const Rows x = draw_rows(c, c.k);
  const Tensor w = draw({c.experts(), c.n, c.k});
  const Shape shape = {c.capacity(), c.n};
  const Tensor marks = narrow(tensor(shape, DType::f32, Values(static_cast<size_t>(shape.numel()), 7)));
  Tensor marked = copied(marks);
  const std::byte* const address = marked.address();
  marked = {};
  const Rows y = grouped_matmul_nt(x, w, offsets);
  ASSERT_EQ(y.data.address(), address);
  const std::vector<int64_t> o = c.offsets();
  EXPECT_TRUE(same_bits(y.data.slice(0, o.front()), marks.slice(0, o.front())));
  EXPECT_TRUE(same_bits(y.data.slice(o.back(), c.capacity()), marks.slice(o.back(), c.capacity())));
}

TEST_F(GroupedBf16, RefusesWhatDoesNotFit) {
  const Rows x = all_rows(draw({3, 8}));
  const Tensor w = draw({2, 8, 8});
  for (const std::vector<int64_t>& wrong : {std::vector<int64_t>{0, 2, 4}, {0, 2, 1}, {-1, 0, 3}}) {
    const Tensor offsets = indices64({3}, wrong).to(kGpu);
    (void)grouped_matmul_nt(x, w, offsets);
    EXPECT_THROW(stream_->synchronise(), BrokenPromise);
    stream_->synchronise();
  }
  EXPECT_THROW(grouped_matmul_nt(x, wide(w), indices64({3}, {0, 2, 3}).to(kGpu)), BrokenPromise);
  EXPECT_THROW(grouped_matmul_tn_into(Tensor::empty({2, 8, 8}, DType::f64, kGpu), x, x,
                                      indices64({3}, {0, 2, 3}).to(kGpu)),
               BrokenPromise);
}

}  // namespace
}  // namespace phalanx::test
