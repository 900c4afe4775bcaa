// Linear layers in FP8 on a GPU beside the CPU's, whose quantised values they have to the bit where what is
// quantised is the same, and in bf16 beside one rank there.
#include <random>

#include "tests/cuda_test.h"
#include "tests/train/fp8_runs.h"

namespace phalanx::test {
namespace {

class Fp8OnGpu : public CudaTest, public testing::WithParamInterface<std::tuple<Fp8Model, bool>> {};

TEST_P(Fp8OnGpu, EqualsTheCpu) {
  const auto [model, narrow] = GetParam();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  VerifyOptions options = fp8_options(model, seed);
  options.device = Device::Kind::cuda;
  options.reference = narrow ? Device::Kind::cuda : Device::Kind::cpu;
  options.narrow = narrow;
  verify(options, fp8_cases(model), [](const VerifyRow& row) {
    EXPECT_TRUE(row.pass) << row.run.layout.text() << " " << row.run.schedule << ": " << row.error << " "
                          << row.worst_tensor << " " << row.max_rel_grad_err << " loss " << row.loss_err
                          << " weights " << row.weights_err;
  });
}

INSTANTIATE_TEST_SUITE_P(Models, Fp8OnGpu,
                         testing::Combine(testing::Values(Fp8Model::llama, Fp8Model::mla, Fp8Model::moe),
                                          testing::Bool()),
                         [](const auto& info) {
                           return fp8_name(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "_bf16" : "_f32");
                         });

}  // namespace
}  // namespace phalanx::test
