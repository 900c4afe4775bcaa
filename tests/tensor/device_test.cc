#include "phalanx/tensor/device.h"

#include <gtest/gtest.h>

#include "phalanx/base/error.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {
namespace {

TEST(Device, HasTheNameThatPeopleWrite) {
  EXPECT_EQ(device_name(kCpu), "cpu");
  EXPECT_EQ(device_name(cuda_device(3)), "cuda:3");
  EXPECT_NE(cuda_device(0), kCpu);
  EXPECT_NE(cuda_device(0), cuda_device(1));
}

TEST(Device, TensorsAreOnTheCpuUnlessToldOtherwise) {
  const Tensor t = Tensor::zeros({2, 3}, DType::f64);
  EXPECT_EQ(t.device(), kCpu);
  EXPECT_FALSE(t.on_cuda());
  EXPECT_EQ(Tensor().device(), kCpu);
  EXPECT_EQ(t.to(kCpu).raw(), t.raw());
}

TEST(Device, CopiesHaveEqualShapesAndTypes) {
  const Tensor from = Tensor::of(Shape{3}, std::span<const float>(std::array{1.f, 2.f, 3.f}));
  const Tensor to = Tensor::zeros({3}, DType::f32);
  copy_into(to, from);
  EXPECT_EQ(to.data<float>()[2], 3.f);
  EXPECT_THROW(copy_into(to, from.slice(0, 2)), BrokenPromise);
  EXPECT_THROW(copy_into(to, Tensor::zeros({3}, DType::f64)), BrokenPromise);
  copy_into(to.slice(1, 1), from.slice(2, 2));
}

TEST(Device, WithoutCudaAnErrorSaysWhatToDo) {
  if (kHaveCuda) GTEST_SKIP() << "this build has CUDA";
  EXPECT_THROW((void)cuda_initialise(), Error);
  try {
    (void)Tensor::empty({1}, DType::f32, cuda_device(0));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--preset cuda"), std::string::npos);
  }
}

}  // namespace
}  // namespace phalanx
