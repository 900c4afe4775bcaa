// Weighted sums of rows, and what they must not touch.
#include "phalanx/ep/weighted_rows.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

namespace phalanx::ep {
namespace {

// `bytes` before a page that nobody may touch.
class BeforeNothing {
 public:
  explicit BeforeNothing(size_t bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    whole_ = (bytes + page_ - 1) / page_ * page_;
    at_ = static_cast<std::byte*>(
        mmap(nullptr, whole_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(at_ + whole_, page_, PROT_NONE);
    data_ = at_ + whole_ - bytes;
  }
  ~BeforeNothing() { munmap(at_, whole_ + page_); }
  BeforeNothing(const BeforeNothing&) = delete;
  BeforeNothing& operator=(const BeforeNothing&) = delete;
  std::byte* data() const { return data_; }

 private:
  size_t page_;
  size_t whole_ = 0;
  std::byte* at_ = nullptr;
  std::byte* data_ = nullptr;
};

// Rows that end where memory ends are read to their last element and no further, whatever their width.
TEST(WeightedRows, ReadNothingBehindARow) {
  for (int64_t width = 1; width <= 70; ++width) {
    for (const DType dtype : {DType::bf16, DType::f16, DType::f32, DType::f64}) {
      const size_t item = dtype_size(dtype);
      const BeforeNothing row(static_cast<size_t>(width) * item);
      const double one = 1;
      const float one_f = 1;
      for (int64_t i = 0; i < width; ++i) {
        std::byte* const to = row.data() + static_cast<size_t>(i) * item;
        if (dtype == DType::bf16) *reinterpret_cast<bf16*>(to) = bf16::from(one_f);
        if (dtype == DType::f16) *reinterpret_cast<f16*>(to) = f16::from(one_f);
        if (dtype == DType::f32) std::memcpy(to, &one_f, item);
        if (dtype == DType::f64) std::memcpy(to, &one, item);
      }
      const Tensor out = Tensor::zeros({1, width}, dtype);
      const Tensor weights = Tensor::zeros({1, 3}, dtype == DType::f64 ? DType::f64 : DType::f32);
      std::memcpy(weights.raw(), dtype == DType::f64 ? static_cast<const void*>(&one) : &one_f,
                  dtype_size(weights.dtype()));
      const std::vector<const std::byte*> rows = {row.data(), nullptr, nullptr};
      weighted_rows(rows, weights, out);
      EXPECT_EQ(std::memcmp(out.raw(), row.data(), out.bytes()), 0) << dtype_name(dtype) << " " << width;
    }
  }
}

}  // namespace
}  // namespace phalanx::ep
