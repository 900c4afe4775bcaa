// What tests on a GPU share. They are skipped, and say why, where there is none.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "phalanx/base/error.h"
#include "phalanx/tensor/device.h"
#include "phalanx/tensor/stream.h"

namespace phalanx::test {

/// Starts CUDA, once a process. Says why it cannot be used; empty if it can.
inline const std::string& why_no_gpu() {
  static const std::string why = []() -> std::string {
    try {
      (void)cuda_initialise({.reserve_bytes = size_t{256} << 20});
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }();
  return why;
}

/// Tests on cuda:0.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!why_no_gpu().empty()) GTEST_SKIP() << why_no_gpu();
  }
  static constexpr Device kGpu = cuda_device(0);
};

}  // namespace phalanx::test
