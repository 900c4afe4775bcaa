// Layouts of several ranks that share a GPU, as threads, beside one rank, on the CPU or, in bf16, on a GPU,
// too: every parameter's gradient, losses, and the weights after three steps.
#include <random>
#include <vector>

#include "phalanx/train/verify.h"
#include "tests/cuda_test.h"
#include "tests/train/small_runs.h"

namespace phalanx::test {
namespace {

struct Cases {
  const char* name;
  std::vector<VerifyCase> list;
};

// Every axis by each of its ways, and some axes together.
std::vector<Cases> all_cases() {
  return {{"dp",
           {{.layout = {}},
            {.layout = {.dp = 2}},
            {.layout = {.dp = 2}, .zero = Zero::optimizer},
            {.layout = {.dp = 2}, .zero = Zero::gradients},
            {.layout = {.dp = 2}, .zero = Zero::weights, .recompute = Recompute::full},
            {.layout = {.dp = 4}, .zero = Zero::weights, .shard = 2}}},
          {"pp",
           {{.layout = {.pp = 2}, .schedule = "1f1b"},
            {.layout = {.pp = 2}, .schedule = "zb-h1"},
            {.layout = {.pp = 2}, .schedule = "dualpipe", .recompute = Recompute::attention},
            {.layout = {.pp = 2}, .schedule = "1f1b", .slices = 2},
            {.layout = {.pp = 4}, .schedule = "zb-h1"}}},
          {"cp",
           {{.layout = {.cp = 2}, .ulysses = 1},
            {.layout = {.cp = 2}, .ulysses = 1, .slices = 2},
            {.layout = {.cp = 2}, .ulysses = 2},
            {.layout = {.cp = 4}, .ulysses = 1},
            {.layout = {.cp = 4}, .ulysses = 2}}},
          {"tp",
           {{.layout = {.tp = 2}},
            {.layout = {.tp = 2}, .sequence = true},
            {.layout = {.tp = 2}, .tp_overlap = true},
            {.layout = {.tp = 2}, .sequence = true, .tp_overlap = true},
            {.layout = {.tp = 4}, .sequence = true, .recompute = Recompute::mlp}}},
          {"together",
           {{.layout = {.dp = 2, .tp = 2}, .sequence = true, .zero = Zero::gradients},
            {.layout = {.cp = 2, .tp = 2}, .sequence = true, .ulysses = 1},
            {.layout = {.pp = 2, .tp = 2}, .schedule = "1f1b", .sequence = true},
            {.layout = {.pp = 2, .dp = 2}, .schedule = "zb-h1", .zero = Zero::weights}}}};
}

// Of mixtures of experts.
const Cases kOfExperts = {"ep",
                          {{.layout = {.dp = 2, .ep = 2}},
                           {.layout = {.dp = 2, .ep = 2}, .zero = Zero::weights, .recompute = Recompute::mlp},
                           {.layout = {.dp = 2, .etp = 2}},
                           {.layout = {.dp = 4, .ep = 4}, .zero = Zero::gradients},
                           {.layout = {.dp = 4, .ep = 2, .etp = 2}},
                           {.layout = {.dp = 2, .tp = 2, .ep = 4}, .sequence = true},
                           {.layout = {.pp = 2, .dp = 2, .ep = 2}, .schedule = "dualpipe"},
                           {.layout = {.dp = 2, .cp = 2, .ep = 2, .etp = 2}, .ulysses = 1}}};

std::string text_of(const VerifyRow& row) {
  const VerifyCase& c = row.run;
  return format("{} {} zero {} sequence {} overlap {} ulysses {} slices {} recompute {}", c.layout.text(),
                c.schedule, static_cast<int>(c.zero), c.sequence, c.tp_overlap, c.ulysses, c.slices,
                recompute_name(c.recompute));
}

struct Model {
  const char* name;
  TrainConfig (*config)(const Layout&, const char*);
};

// In bf16, between two orders of the same sums: rounding alone makes 1 to 3 % of the gradients of models this
// small, whose norms of latents are of 20 columns.
constexpr double kOfBf16 = 4e-2;

class GpuLayouts : public CudaTest, public testing::WithParamInterface<std::tuple<Model, DType, Cases>> {};

TEST_P(GpuLayouts, EqualOneRank) {
  const auto& [model, dtype, cases] = GetParam();
  const bool bf16 = dtype == DType::bf16;
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  VerifyOptions options = {.model = model.config({}, "sequential").model,
                           .device = Device::Kind::cuda,
                           .reference = bf16 ? Device::Kind::cuda : Device::Kind::cpu,
                           .dtype = bf16 ? DType::f32 : dtype,
                           .documents = !bf16,  // of each number of them cuDNN makes a plan
                           .narrow = bf16,
                           .seed = seed,
                           .tolerance = bf16 ? kOfBf16 : 0};
  options.model.vocabulary = 61;
  if (bf16) options.model.moe.top_k = options.model.moe.experts;  // rounding may not change the choice
  verify(options, cases.list, [](const VerifyRow& row) {
    EXPECT_TRUE(row.pass) << text_of(row) << ": " << row.error << ", gradient of " << row.worst_tensor << " "
                          << row.max_rel_grad_err << ", first wrong " << row.first_tensor << ", norm "
                          << row.grad_norm_err << ", loss " << row.loss_err << ", weights "
                          << row.weights_err;
  });
}

std::string name_of(const testing::TestParamInfo<std::tuple<Model, DType, Cases>>& info) {
  const auto& [model, dtype, cases] = info.param;
  return format("{}_{}_{}", model.name, dtype_name(dtype), cases.name);
}

INSTANTIATE_TEST_SUITE_P(
    Models, GpuLayouts,
    testing::Combine(testing::Values(Model{"gpt", small_gpt}, Model{"llama", small_llama},
                                     Model{"moe", small_moe}, Model{"mla", small_mla_of_gpus}),
                     testing::Values(DType::f64, DType::f32, DType::bf16), testing::ValuesIn(all_cases())),
    name_of);
INSTANTIATE_TEST_SUITE_P(Experts, GpuLayouts,
                         testing::Combine(testing::Values(Model{"moe", small_moe}),
                                          testing::Values(DType::f64, DType::f32, DType::bf16),
                                          testing::Values(kOfExperts)),
                         name_of);

}  // namespace
}  // namespace phalanx::test
