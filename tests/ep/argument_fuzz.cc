#include "tests/ep/argument_fuzz.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "phalanx/base/error.h"

namespace phalanx::ep {
namespace {

constexpr std::array kDtypes = {DType::f64, DType::f32, DType::bf16, DType::f16, DType::f8e4m3,
                                DType::i64, DType::i32, DType::i8,   DType::u8};

void set(const Tensor& t, int64_t i, double v) {
  if (t.dtype() == DType::f64) t.data<double>()[i] = v;
  if (t.dtype() == DType::f32) t.data<float>()[i] = static_cast<float>(v);
  if (t.dtype() == DType::bf16) t.data<bf16>()[i] = bf16::from(static_cast<float>(v));
  if (t.dtype() == DType::f16) t.data<f16>()[i] = f16::from(static_cast<float>(v));
}

bool summed(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

}  // namespace

void hold(bool condition, const char* what) {
  if (!condition) throw std::logic_error(what);
}

double element(const Tensor& t, int64_t i) {
  if (t.dtype() == DType::f64) return t.data<double>()[i];
  if (t.dtype() == DType::f32) return t.data<float>()[i];
  return t.dtype() == DType::bf16 ? t.data<bf16>()[i].to_float() : t.data<f16>()[i].to_float();
}

void Random::fill(const Tensor& t) {
  if (summed(t.dtype())) {
    for (int64_t i = 0; i < t.numel(); ++i) set(t, i, static_cast<double>(below(17) - 8));
  } else {
    for (size_t i = 0; i < t.bytes(); ++i) t.raw()[i] = static_cast<std::byte>(below(256));
  }
}

Tensor Random::tensor(const Shape& shape, DType dtype) {
  const Tensor t = Tensor::empty(shape, dtype);
  fill(t);
  return t;
}

int64_t Random::extreme() {
  constexpr std::array<int64_t, 10> kValues = {std::numeric_limits<int64_t>::min(),
                                               -(int64_t{1} << 32),
                                               -2,
                                               -1,
                                               0,
                                               1,
                                               int64_t{1} << 50,
                                               int64_t{1} << 61,
                                               int64_t{1} << 62,
                                               std::numeric_limits<int64_t>::max()};
  return of(kValues);
}

Shape Random::other_shape(const Shape& shape) {
  std::vector<int64_t> extents(shape.extents().begin(), shape.extents().end());
  const auto any = [&]() -> int64_t& { return extents[static_cast<size_t>(below(std::ssize(extents)))]; };
  const int64_t how = below(extents.empty() ? 1 : 5);
  if (how == 0 && extents.size() < Shape::kMaxRank) extents.push_back(below(3));
  if (how == 1) extents.pop_back();
  if (how == 2) ++any();
  if (how == 3 && std::ranges::min(extents) > 0) --any();
  if (how == 4) any() = 0;
  return Shape(std::span<const int64_t>(extents));
}

Tensor Random::damaged(const Tensor& t) {
  if (!t.defined()) return one_in(2) ? t : tensor({below(3), below(3)}, of(kDtypes));
  const int64_t how = below(6);
  if (how == 0) return {};
  if (how == 1) return tensor(t.shape(), of(kDtypes));
  if (how == 2) return tensor(Shape{}, of(kDtypes));
  if (how > 3 || t.shape().rank() == 0) return tensor(other_shape(t.shape()), t.dtype());
  // The same rows, not where storage begins.
  const Tensor larger = Tensor::empty(t.shape().with_rows(t.rows() + 2), t.dtype());
  fill(larger);
  const Tensor inside = larger.slice(1, 1 + t.rows());
  copy_into(inside, t);
  return inside;
}

void fuzz_worlds(int worlds, const std::function<RankBody(int ranks, unsigned seed)>& body) {
  const unsigned first = std::random_device{}();
  std::printf("first seed %u\n", first);  // a crash shows no trace
  std::fflush(stdout);
  for (int i = 0; i < worlds; ++i) {
    const unsigned seed = first + static_cast<unsigned>(i);
    SCOPED_TRACE(seed);
    Random random(seed);
    const int ranks = 1 + static_cast<int>(random.below(4));
    const ThreadWorldOptions options = {
        .ranks = ranks, .threads_per_rank = 1, .deadlines = {.progress = std::chrono::seconds(10)}};
    const auto begin = std::chrono::steady_clock::now();
    try {
      run_thread_ranks(options, random.one_in(2) ? directly() : by_messages(), body(ranks, seed));
    } catch (const Error&) {  // that, and what the others are told of it
    } catch (const std::exception& e) {
      FAIL() << e.what();
    }
    ASSERT_LT(std::chrono::steady_clock::now() - begin, options.deadlines.progress)
        << "it ended by the deadline";
  }
}

}  // namespace phalanx::ep
