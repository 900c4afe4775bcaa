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
INSTANTIATE_TEST_SUITE_P(Cpu, LinearProduct, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, GroupedProduct, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Elementwise, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Cast, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Bias, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, GeluTest, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Dropout, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Rope, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, LayerNorm, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, AdamW, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Sgd, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Optimizer, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Attention, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, AttentionParts, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Permute, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Route, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, RouteGroups, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, RouterLogits, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, BalanceLoss, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, ZLoss, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Capacity, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, ChoiceMargins, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, ChooseInstead, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, VocabularyParts, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, HeadRuns, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, LatentKv, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Fp8, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Fp8Product, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Fp8Grouped, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, DecodeAttention, kOnCpu);
INSTANTIATE_TEST_SUITE_P(Cpu, Argmax, kOnCpu);

}  // namespace phalanx::test
