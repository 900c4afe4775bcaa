// Damaged arguments: random ones that are right, of which some are then made wrong.
#pragma once

#include <random>

#include "phalanx/tensor/tensor.h"
#include "tests/ep/random_cases.h"

namespace phalanx::ep {

/// So many worlds of 1 … 4 ranks, from a random seed. Calls whose arguments one rank, some or all have
/// damaged must give the right results, or an Error on the ranks that phalanx/ep/buffer.h names; then the
/// buffer works on. Ways: directly, by messages, on two levels.
void fuzz_buffer(int worlds);
/// The same of phalanx/ep/low_latency.h.
void fuzz_low_latency(int worlds);
/// Buffers of damaged maps and options.
void fuzz_makers(int worlds);

/// Runs what `body` gives for a seed in so many worlds, before their deadline. It may end with an Error, and
/// with nothing else.
void fuzz_worlds(int worlds, const std::function<RankBody(int ranks, unsigned seed)>& body);

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  /// 0 … n − 1.
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  unsigned seed() { return static_cast<unsigned>(engine_()); }
  template <class T, size_t kCount>
  T of(const std::array<T, kCount>& values) {
    return values[static_cast<size_t>(below(std::ssize(values)))];
  }

  /// Of [−8, 8], whole, so that sums of a few are exact in every dtype that is summed; other dtypes get
  /// bytes.
  void fill(const Tensor& t);
  Tensor tensor(const Shape& shape, DType dtype);
  /// What no count should be; none that memory might just have room for.
  int64_t extreme();
  /// Another dtype, shape or storage, or none; now and then the same.
  Tensor damaged(const Tensor& t);

 private:
  Shape other_shape(const Shape& shape);

  std::mt19937 engine_;
};

/// An element, as summed.
double element(const Tensor& t, int64_t i);

/// Throws what does not hold, which no Error is.
void hold(bool condition, const char* what);

}  // namespace phalanx::ep
