// Whole models against PyTorch, in f64: losses, every parameter's gradient, and the weights after three steps
// of AdamW. make_golden.py made the files and says what they hold.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/safetensors.h"
#include "phalanx/train/rank_run.h"
#include "tests/paths.h"

namespace phalanx {
namespace {

constexpr double kTolerance = 1e-9;  // of gradients

class Golden : public ::testing::TestWithParam<const char*> {
 protected:
  Golden() : file_(std::string(testing::kSourceDir) + "/tests/golden/" + GetParam() + ".safetensors") {}

  Tensor read(const std::string& name) const {
    const StoredTensor& stored = file_.at(name);
    int64_t n = 1;
    for (const int64_t extent : stored.shape) n *= extent;
    const Shape shape = stored.shape.size() == 3   ? Shape{stored.shape[0], stored.shape[1], stored.shape[2]}
                        : stored.shape.size() == 2 ? Shape{stored.shape[0], stored.shape[1]}
                                                   : Shape{n};
    const Tensor out = Tensor::empty(shape, *dtype_of_safetensors(stored.dtype));
    file_.load(stored, whole(shape), out);
    return out;
  }
  double number(const std::string& name, size_t step) const { return read(name).span<double>()[step]; }

  TrainConfig config() const { return parse_train_config(file_.metadata().at("config"), GetParam(), {}); }

  // The sequences of one step, a microbatch each.
  std::vector<Batch> batches(int64_t step) const {
    const Tensor tokens_BT = sequences("tokens", step);
    const Tensor targets_BT = sequences("targets", step);
    const int64_t context = tokens_BT.dim(1);
    std::vector<Batch> out;
    for (int64_t s = 0; s < tokens_BT.rows(); ++s) {
      Batch b = {.tokens = tokens_BT.slice(s, s + 1).view({context}),
                 .targets = targets_BT.slice(s, s + 1).view({context}),
                 .positions = Tensor::empty({context}, DType::i32),
                 .sequence_offsets = Tensor::zeros({2}, DType::i64),
                 .rows = Tensor::empty({context}, DType::i64)};
      std::iota(b.positions.span<int32_t>().begin(), b.positions.span<int32_t>().end(), 0);
      std::iota(b.rows.span<int64_t>().begin(), b.rows.span<int64_t>().end(), s * context);
      b.sequence_offsets.span<int64_t>()[1] = context;
      out.push_back(with_ahead(std::move(b), config().model.mtp));
    }
    return out;
  }

  // Sets every weight to the file's, which holds no others.
  void load_weights(ParameterStore& store) const {
    size_t loaded = 0;
    for (const Parameter& p : store.all()) {
      const Tensor from = read("before." + p.name());
      ASSERT_EQ(from.numel(), p.value().numel()) << p.name();  // gate and up: [2F, D] there, [2, F, D] here
      std::ranges::copy(from.span<double>(), p.value().span<double>().begin());
      ++loaded;
    }
    const auto has_prefix = [](const StoredTensor& t) { return t.name.starts_with("before."); };
    EXPECT_EQ(std::ranges::count_if(file_.tensors(), has_prefix), loaded);
  }

 private:
  Tensor sequences(const std::string& name, int64_t step) const {
    const Tensor all = read(name);
    return all.slice(step, step + 1).view({all.dim(1), all.dim(2)});
  }

  SafetensorsFile file_;
};

double norm(std::span<const double> v) {
  return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
}

double distance(const Tensor& a, const Tensor& b) {
  const auto x = a.span<double>();
  std::vector<double> difference(x.begin(), x.end());
  for (size_t i = 0; i < difference.size(); ++i) difference[i] -= b.span<double>()[i];
  return norm(difference);
}

TEST_P(Golden, TrainsAsPyTorchDoes) {
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    const TrainConfig c = config();
    RankRun rank(c, read("before.embedding.w").rows(), world);
    ASSERT_NO_FATAL_FAILURE(load_weights(rank.parameters()));
    for (int64_t step = 0; step < c.train.steps; ++step) {
      const auto at = static_cast<size_t>(step);
      const double lr = learning_rate(c.lr, step, c.train.steps);
      const StepResult result = train_step(rank.trainer(), batches(step), lr, at);
      EXPECT_NEAR(result.loss, number("loss", at), kTolerance * result.loss) << "step " << step;
      EXPECT_NEAR(result.balance_loss, number("balance_loss", at), kTolerance) << "step " << step;
      if (c.model.mtp > 0) {
        EXPECT_NEAR(result.mtp_loss, number("mtp_loss", at), kTolerance * result.mtp_loss) << "step " << step;
      }
      EXPECT_NEAR(result.grad_norm, number("grad_norm", at), kTolerance * result.grad_norm)
          << "step " << step;
      if (step > 0) continue;
      for (const Parameter& p : rank.parameters().all()) {
        const Tensor expected = read("gradient." + p.name());
        // Softmax ignores what a key's bias adds to every score: that gradient is rounding.
        const double size = std::max(norm(expected.span<double>()), 1e-6 * result.grad_norm);
        EXPECT_LT(distance(p.grad(), expected), kTolerance * size) << p.name();
      }
    }
    for (const Parameter& p : rank.parameters().all()) {
      const Tensor expected = read("after." + p.name());
      // AdamW divides by √v: it magnifies the rounding of gradients that nearly vanish.
      EXPECT_LT(distance(p.value(), expected), 1e-8 * norm(expected.span<double>())) << p.name();
      EXPECT_GT(distance(read("before." + p.name()), expected), 0) << p.name();
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Models, Golden,
                         ::testing::Values("gpt2", "llama", "llama_moe", "llama_moe_sigmoid",
                                           "llama_moe_deepseek", "deepseek", "deepseek_queries",
                                           "deepseek_mtp"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace phalanx
