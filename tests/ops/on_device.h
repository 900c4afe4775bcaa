// Tests of ops that have a CUDA twin: written once, in OP_cases.cc, and run on the CPU (cases_test.cc) and on
// a GPU (cases_cuda_test.cc).
#pragma once

#include <functional>
#include <memory>
#include <ostream>

#include "tests/cuda_test.h"
#include "tests/ops/reference.h"

namespace phalanx::test {

/// Where a test runs, and what its thread needs there.
struct Place {
  Device device;
  std::function<std::shared_ptr<void>()> enter;  // the object lives as long as the test

  friend void PrintTo(const Place& place, std::ostream* out) { *out << device_name(place.device); }
};

class OnDevice : public testing::TestWithParam<Place> {
 public:
  static bool on_gpu() { return GetParam().device.is_cuda(); }

 protected:
  void SetUp() override {
    if (on_gpu() && !why_no_gpu().empty()) GTEST_SKIP() << why_no_gpu();
    rank_ = GetParam().enter();
  }

 private:
  std::shared_ptr<void> rank_;
};

/// The tensor where the running test is. Inputs are made, and results compared, on the CPU.
inline Tensor here(const Tensor& t) { return t.to(OnDevice::GetParam().device); }
inline Rows here(const Rows& rows) { return {here(rows.data), here(rows.live)}; }
/// A tensor there of its own, with the same elements.
inline Tensor copy_here(const Tensor& t) { return here(copy(t)); }

/// The elements of an i64 tensor, wherever it is.
inline std::vector<int64_t> list(const Tensor& t) {
  const Tensor host = t.to(kCpu);
  const auto span = host.span<const int64_t>();
  return {span.begin(), span.end()};
}

/// for_each_target on the CPU; once on a GPU.
inline void for_each_target_here(const std::function<void(bool fused)>& f) {
  if (OnDevice::on_gpu()) return f(true);
  for_each_target(f);
}

/// f breaks a promise. On a GPU a kernel may find that out, and the host hears of it when it next
/// synchronises; afterwards the stream is as good as before.
inline void expect_refused(const std::function<void()>& f) {
  EXPECT_THROW(
      {
        f();
        if constexpr (kHaveCuda) {
          if (OnDevice::on_gpu()) current_stream().synchronise();
        }
      },
      BrokenPromise);
  if constexpr (kHaveCuda) {
    if (OnDevice::on_gpu()) current_stream().synchronise();
  }
}

class RmsNorm : public OnDevice {};
class Swiglu : public OnDevice {};
class Embedding : public OnDevice {};
class CrossEntropyLoss : public OnDevice {};
class DenseProduct : public OnDevice {};
class LinearProduct : public OnDevice {};
class GroupedProduct : public OnDevice {};
class Elementwise : public OnDevice {};
class Cast : public OnDevice {};
class Bias : public OnDevice {};
class GeluTest : public OnDevice {};
class Dropout : public OnDevice {};
class Rope : public OnDevice {};
class LayerNorm : public OnDevice {};
class AdamW : public OnDevice {};
class Sgd : public OnDevice {};
class Optimizer : public OnDevice {};
class Attention : public OnDevice {};
class AttentionParts : public OnDevice {};
class Permute : public OnDevice {};
class Route : public OnDevice {};
class RouteGroups : public OnDevice {};
class RouterLogits : public OnDevice {};
class BalanceLoss : public OnDevice {};
class ZLoss : public OnDevice {};
class Capacity : public OnDevice {};
class ChoiceMargins : public OnDevice {};
class ChooseInstead : public OnDevice {};
class VocabularyParts : public OnDevice {};
class HeadRuns : public OnDevice {};
class LatentKv : public OnDevice {};
class Fp8 : public OnDevice {};
class Fp8Product : public OnDevice {};
class Fp8Grouped : public OnDevice {};
class DecodeAttention : public OnDevice {};
class Argmax : public OnDevice {};

}  // namespace phalanx::test
