// What tests of bf16 on a GPU share.
#pragma once

#include <optional>

#include "phalanx/ops/cast.h"
#include "tests/cuda_test.h"
#include "tests/ops/reference.h"

namespace phalanx::test {

class Bf16OnGpu : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    stream_.emplace(kGpu);
    scope_.emplace(*stream_);
  }

  static Tensor narrow(const Tensor& x) {
    const Tensor y = Tensor::empty(x.shape(), DType::bf16, kGpu);
    narrow_into(y, x.to(kGpu));
    return y;
  }
  static Tensor wide(const Tensor& x) {
    const Tensor y = Tensor::empty(x.shape(), DType::f32, kGpu);
    widen_into(y, x);
    return y;
  }
  static Rows wide(const Rows& x) { return {wide(x.data), x.live}; }
  Tensor draw(const Shape& shape, double deviation = 1, double mean = 0) {
    return narrow(random_.tensor(shape, DType::f32, deviation, mean));
  }
  static Tensor zeros(const Shape& shape, DType dtype = DType::f32) {
    return Tensor::zeros(shape, dtype, kGpu);
  }
  static Tensor copied(const Tensor& x) {
    const Tensor y = Tensor::empty(x.shape(), x.dtype(), kGpu);
    copy_into(y, x);
    return y;
  }

  // got is what `f32` gives, rounded.
  static void expect_rounded(const Tensor& got, const Tensor& f32, const char* what) {
    EXPECT_EQ(got.dtype(), DType::bf16) << what;
    EXPECT_TRUE(same_bits(got, narrow(f32))) << what;
  }
  // The same, but that sums were made in another order.
  static void expect_near(const Tensor& got, const Tensor& f32, double floor, const char* what) {
    expect_close(values(got), values(f32), within(1, got.dtype(), floor), what);
  }

  Random random_;
  testing::ScopedTrace trace_{__FILE__, __LINE__, random_.trace()};
  std::optional<Stream> stream_;
  std::optional<StreamScope> scope_;
};

}  // namespace phalanx::test
