// A table of CUDA ops: bytes a second beside a plain copy's, operations a second of products.
#pragma once

#include <string>

#include "bench/on_gpu.h"
#include "bench/report.h"

namespace phalanx::bench {

inline Tensor random_ids(int64_t n, int64_t below) {
  std::mt19937 engine(2);
  const Tensor t = Tensor::empty({n}, DType::i32);
  for (int32_t& id : t.span<int32_t>()) id = static_cast<int32_t>(engine() % static_cast<uint64_t>(below));
  return t.to(kGpu);
}

class Table {
 public:
  explicit Table(Report& report) : report_(report) {}

  // An op that moves so many f32, or other elements, at least.
  void moves(const std::string& op, const std::string& shape, int64_t elements,
             const std::function<void()>& f, DType dtype = DType::f32) {
    const double ms = milliseconds(f);
    const auto bytes = static_cast<double>(elements) * static_cast<double>(dtype_size(dtype));
    const double gb_s = bytes / ms / 1e6;
    if (copy_gb_s_ == 0) copy_gb_s_ = gb_s;
    report_.add({{"op", op},
                 {"shape", shape},
                 {"ms", ms},
                 {"GB/s", gb_s},
                 {"of a copy", gb_s / copy_gb_s_},
                 {"TFLOP/s", "-"}});
  }
  void multiplies(const std::string& op, const std::string& shape, double operations,
                  const std::function<void()>& f) {
    const double ms = milliseconds(f);
    report_.add({{"op", op},
                 {"shape", shape},
                 {"ms", ms},
                 {"GB/s", "-"},
                 {"of a copy", "-"},
                 {"TFLOP/s", operations / ms / 1e9}});
  }

 private:
  Report& report_;
  double copy_gb_s_ = 0;
};

inline void copies(Table& table) {
  const int64_t n = 1 << 28;
  const Tensor from = random({n}, DType::f32);
  const Tensor to = Tensor::empty({n}, DType::f32, kGpu);
  table.moves("copy", "1 GiB", 2 * n, [&] { copy_into(to, from); });
}

}  // namespace phalanx::bench
