#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

const auto kOnCpu = testing::Values(Place{kCpu, [] { return nullptr; }});

}  // namespace

INSTANTIATE_TEST_SUITE_P(Cpu, RmsNorm, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Swiglu, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Embedding, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, CrossEntropyLoss, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, DenseProduct, kOnCpu);

}  // namespace phalanx::test
