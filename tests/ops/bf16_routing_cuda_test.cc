// A mixture of experts' rows in bf16 on a GPU: logits in f32, rows moved bit by bit, sums in f32 rounded
// once.
#include <array>
#include <cmath>
#include <numeric>

#include "phalanx/ops/permute.h"
#include "phalanx/ops/route.h"
#include "phalanx/ops/swiglu.h"
#include "tests/ops/bf16_on_gpu.h"

namespace phalanx::test {
namespace {

class Bf16Routing : public Bf16OnGpu {
 protected:
  // Slots of random experts; some name none, some the same one.
  Rows slots(int64_t rows, int64_t k, int64_t live, int64_t experts) {
    std::vector<int64_t> idx(static_cast<size_t>(rows * k));
    for (int64_t& e : idx) e = random_.integer(0, 5) == 0 ? -1 : random_.integer(0, experts - 1);
    return {indices64({rows, k}, idx).to(kGpu), indices64({1}, {live}).to(kGpu)};
  }
  static int64_t count(const Tensor& live) { return live.to(kCpu).data<int64_t>()[0]; }
};

struct Size {
  int64_t rows, k, live, experts, width;
};
constexpr Size kSizes[] = {{1, 1, 1, 1, 1},       {7, 2, 5, 3, 3},     {33, 8, 33, 16, 64},
                           {5, 11, 4, 7, 200},    {40, 6, 0, 8, 24},   {300, 9, 299, 40, 136},
                           {12, 32, 12, 5, 1003}, {64, 2, 64, 4, 7168}};

TEST_F(Bf16Routing, RowsComeAndGoAsTheyAre) {
  for (const Size& s : kSizes) {
    SCOPED_TRACE(
        format("{} of {} rows of {}, {} slots of {} experts", s.live, s.rows, s.width, s.k, s.experts));
    const Rows topk = slots(s.rows, s.k, s.live, s.experts);
    const ExpertOrder order = order_by_expert(topk, static_cast<int>(s.experts));
    const int64_t held = count(order.live);
    const Rows x = {draw({s.rows, s.width}), topk.live};
    const Rows rows = permute(x, order);
    EXPECT_EQ(values(rows), values(permute(wide(x), order)));

    const Tensor weights = random_.tensor({s.rows, s.k}, DType::f32).to(kGpu);
    const Rows y = unpermute(rows, order, weights, topk);
    EXPECT_EQ(y.data.dtype(), DType::bf16);
    expect_rounded(y.data.slice(0, s.live), unpermute(wide(rows), order, weights, topk).data.slice(0, s.live),
                   "weighted sum");
    expect_rounded(unpermute(rows, order, Tensor(), topk).data.slice(0, s.live),
                   unpermute(wide(rows), order, Tensor(), topk).data.slice(0, s.live), "sum");

    const Rows gate_up = {draw({s.rows * s.k, 2 * s.width}, 2), order.live};
    const Rows da = {draw({s.rows * s.k, s.width}), order.live};
    const WeightedSwigluGradients got = weighted_swiglu_backward(da, gate_up, order, weights);
    const WeightedSwigluGradients want = weighted_swiglu_backward(wide(da), wide(gate_up), order, weights);
    expect_rounded(got.gate_up.data.slice(0, held), want.gate_up.data.slice(0, held), "dgate_up");
    expect_rounded(got.weighted_CF.data.slice(0, held), want.weighted_CF.data.slice(0, held), "weighted");
    EXPECT_EQ(got.weights_RK.dtype(), DType::f32);
    expect_close(values(got.weights_RK), values(want.weights_RK),
                 within(32, DType::f32, 4 * std::sqrt(static_cast<double>(s.width))), "dweights");
  }
}

// What lies behind the live counts stays as it was.
TEST_F(Bf16Routing, WritesLiveRowsOnly) {
  const Rows topk = slots(50, 4, 20, 6);
  const ExpertOrder order = order_by_expert(topk, 6);
  const int64_t held = count(order.live);
  const Rows rows = permute({draw({50, 40}), topk.live}, order);
  const Tensor weights = random_.tensor({50, 4}, DType::f32).to(kGpu);
  const Rows x = {draw({50, 40}), topk.live};
  // The allocator gives the block that was freed last: what it held shows through where nothing is written.
  const auto expect_kept = [&](const Shape& shape, int64_t from, const auto& op) {
    const Tensor mark = draw(shape);
    Tensor used = copied(mark);
    const void* const address = used.address();
    used = Tensor();
    const Tensor out = op();
    ASSERT_EQ(static_cast<const void*>(out.address()), address);
    EXPECT_TRUE(same_bits(out.slice(from, shape[0]), mark.slice(from, shape[0])));
    EXPECT_FALSE(same_bits(out, mark));
  };
  expect_kept({50, 40}, 20, [&] { return unpermute(rows, order, weights, topk).data; });
  expect_kept({200, 40}, held, [&] { return permute(x, order).data; });
}

// Products of bf16 are exact in f32: only their sums are rounded, in the tensor cores' way.
TEST_F(Bf16Routing, LogitsAreSummedInF32) {
  for (const auto& [rows, width, experts] : {std::array<int64_t, 3>{1, 1, 1},
                                             {5, 7, 3},
                                             {33, 64, 8},
                                             {200, 200, 64},
                                             {130, 1003, 65},
                                             {257, 1024, 256}}) {
    SCOPED_TRACE(format("{}·{}·{}", rows, width, experts));
    const Tensor x = draw({rows, width});
    const Tensor w = draw({experts, width});
    const Tensor logits = router_logits(x, w);
    EXPECT_EQ(logits.dtype(), DType::f32);
    expect_close(values(logits), values(router_logits(wide(x), wide(w))),
                 within(32, DType::f32, 4 * std::sqrt(static_cast<double>(width))), "logits");
    const Routing routing = route(logits, {.top_k = 1});
    EXPECT_EQ(routing.weights_TK.dtype(), DType::f32);
  }
}

TEST_F(Bf16Routing, ARowHasTheSameBitsInAnyCompany) {
  for (const auto& [width, experts] : {std::pair<int64_t, int64_t>(133, 11), {512, 64}, {1024, 160}}) {
    const Tensor x = draw({300, width});
    const Tensor w = draw({experts, width});
    const Tensor all = router_logits(x, w);
    for (int64_t begin = 0; begin < 300;) {
      const int64_t end = std::min<int64_t>(300, begin + random_.integer(1, 140));
      EXPECT_TRUE(same_bits(copied(all.slice(begin, end)), router_logits(copied(x.slice(begin, end)), w)));
      begin = end;
    }
  }
}

}  // namespace
}  // namespace phalanx::test
