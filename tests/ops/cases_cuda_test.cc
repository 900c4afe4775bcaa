// The tests of ops on a GPU, and ranks that share it.
#include <thread>

#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/embedding.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/swiglu.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

constexpr Device kGpu = cuda_device(0);

// A rank's stream, for as long as this lives.
struct Rank {
  Stream stream{kGpu};
  StreamScope scope{stream};
};

const auto kOnGpu = testing::Values(Place{kGpu, [] { return std::make_shared<Rank>(); }});

// One step of a model of one layer: embedding, norm, gated MLP, and a head that shares the embedding's table.
struct Model {
  Tensor tokens, targets;
  Tensor table_VD, norm_D, gate_up_FD, down_DF;

  Model(Random& random, DType dtype, int64_t t, int64_t v, int64_t d, int64_t f)
      : table_VD(random.tensor({v, d}, dtype)),
        norm_D(random.tensor({d}, dtype, 0.1, 1)),
        gate_up_FD(random.tensor({2 * f, d}, dtype, 0.1)),
        down_DF(random.tensor({d, f}, dtype, 0.1)) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i <= t; ++i) ids.push_back(static_cast<int32_t>(random.integer(0, v - 1)));
    tokens = indices({ids.begin(), ids.end() - 1});
    targets = indices({ids.begin() + 1, ids.end()});
  }

  Model on(Device device) const {
    Model m = *this;
    for (Tensor* t : {&m.tokens, &m.targets, &m.table_VD, &m.norm_D, &m.gate_up_FD, &m.down_DF})
      *t = t->to(device);
    return m;
  }

  // The loss and all gradients.
  std::vector<Tensor> step() const {
    constexpr double kEps = 1e-5;
    const auto zeros_like = [](const Tensor& t) { return Tensor::zeros(t.shape(), t.dtype(), t.device()); };
    const Tensor dtable = zeros_like(table_VD);
    const Tensor dnorm = zeros_like(norm_D);
    const Tensor dgate_up = zeros_like(gate_up_FD);
    const Tensor ddown = zeros_like(down_DF);
    const Tensor x = embedding(table_VD, tokens);
    const RmsNormed normed = rmsnorm(x, norm_D, kEps);
    const Rows hidden = all_rows(matmul_nt(normed.y_TD, gate_up_FD));
    const Rows gated = swiglu(hidden);
    const Tensor out = matmul_nt(gated.data, down_DF);
    const Tensor logits = matmul_nt(out, table_VD);
    const CrossEntropy loss = cross_entropy(logits, targets);

    const Tensor& dlogits = logits;
    cross_entropy_backward_into(dlogits, targets, loss.log_sum_exp_T2, 1.0 / static_cast<double>(x.rows()));
    matmul_tn_into(dtable, dlogits, out);
    const Tensor dout = matmul(dlogits, table_VD);
    matmul_tn_into(ddown, dout, gated.data);
    const Rows dgated = {matmul(dout, down_DF), gated.live};
    const Rows dhidden = swiglu_backward(dgated, hidden);
    matmul_tn_into(dgate_up, dhidden.data, normed.y_TD);
    const Tensor dnormed = matmul(dhidden.data, gate_up_FD);
    const Tensor dx = rmsnorm_backward(dnormed, x, norm_D, normed.inv_rms_T, dnorm);
    embedding_backward_into(dtable, dx, tokens);
    return {tensor({1}, DType::f64, {number_of(loss.loss_sum)}), dtable, dnorm, dgate_up, ddown};
  }
};

class RanksOnAGpu : public CudaTest {};

TEST_F(RanksOnAGpu, AStepGivesTheGradientsOfTheCpu) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Rank rank;
  for (const DType dtype : kFloats) {
    const Model model(random, dtype, 97, 65, 48, 130);
    const std::vector<Tensor> want = model.step();
    const std::vector<Tensor> got = model.on(kGpu).step();
    for (size_t i = 0; i < want.size(); ++i) {
      const Values w = values(want[i]);
      expect_close(values(got[i]), w, within(200, dtype, largest(w)), format("result {}", i));
    }
  }
}

TEST_F(RanksOnAGpu, ASteadyStateStepAllocatesNothing) {
  Random random;
  SCOPED_TRACE(random.trace());
  Rank rank;
  const Model model = Model(random, DType::f32, 97, 65, 48, 130).on(kGpu);
  (void)model.step();
  const MemoryStats warm = rank.stream.memory();
  for (int i = 0; i < 10; ++i) (void)model.step();
  EXPECT_EQ(rank.stream.memory().system_allocations, warm.system_allocations);
  EXPECT_EQ(rank.stream.memory().in_use, warm.in_use);
  EXPECT_EQ(rank.stream.memory().peak, warm.peak);
}

// Two ranks are threads with a stream, memory and library handle each. What they compute at the same time has
// the bits of what one computes alone.
TEST_F(RanksOnAGpu, TwoRanksShareItWithoutTouchingOneAnother) {
  Random random;
  SCOPED_TRACE(random.trace());
  const std::array models = {Model(random, DType::f32, 512, 65, 256, 700),
                             Model(random, DType::f32, 333, 257, 96, 64)};
  std::array<std::vector<Tensor>, 2> alone;
  const auto on_cpu = [](const std::vector<Tensor>& results) {
    std::vector<Tensor> out;
    for (const Tensor& t : results) out.push_back(t.to(kCpu));
    return out;
  };
  {
    const Rank rank;
    for (size_t r = 0; r < 2; ++r) alone[r] = on_cpu(models[r].on(kGpu).step());
  }
  std::array<std::atomic<int>, 2> differ{};
  std::array<std::atomic<int64_t>, 2> allocations{};
  const auto run = [&](size_t r) {
    Rank rank;
    const Model model = models[r].on(kGpu);
    for (int i = 0; i < 50; ++i) {
      if (i == 5) allocations[r] = -rank.stream.memory().system_allocations;
      const std::vector<Tensor> results = on_cpu(model.step());
      for (size_t k = 0; k < results.size(); ++k) differ[r] += same_bits(results[k], alone[r][k]) ? 0 : 1;
    }
    allocations[r] += rank.stream.memory().system_allocations;
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  for (size_t r = 0; r < 2; ++r) {
    EXPECT_EQ(differ[r], 0) << "rank " << r;
    EXPECT_EQ(allocations[r], 0) << "rank " << r;
  }
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Gpu, RmsNorm, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Swiglu, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Embedding, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, CrossEntropyLoss, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, DenseProduct, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, LinearProduct, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, GroupedProduct, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Elementwise, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Cast, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Bias, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, GeluTest, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Dropout, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Rope, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, LayerNorm, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, AdamW, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Sgd, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Optimizer, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Attention, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, AttentionParts, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Permute, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Route, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, RouteGroups, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, RouterLogits, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, BalanceLoss, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, ZLoss, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Capacity, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, ChoiceMargins, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, ChooseInstead, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, VocabularyParts, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, HeadRuns, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, LatentKv, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Fp8, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Fp8Product, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Fp8Grouped, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, DecodeAttention, kOnGpu);
INSTANTIATE_TEST_SUITE_P(Gpu, Argmax, kOnGpu);

}  // namespace phalanx::test
