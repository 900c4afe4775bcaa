#include "phalanx/ops/bias.h"

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

TEST_P(Bias, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Shape& shape : {Shape{0, 3}, Shape{1, 1}, Shape{3, 5}, Shape{700, 65}, Shape{70, 300}}) {
      SCOPED_TRACE(format("{} {}", shape, dtype_name(dtype)));
      const Tensor before = random.tensor(shape, dtype);
      const Tensor b = random.tensor({shape[1]}, dtype);
      Values y = values(before);
      Values db = values(b);
      for (size_t i = 0; i < y.size(); ++i) {
        db[i % db.size()] += y[i];
        y[i] += values(b)[i % db.size()];
      }
      for_each_target_here([&](bool) {
        const Tensor got = copy_here(before);
        add_bias_into(got, here(b));
        expect_close(values(got), y, within(1, dtype), "y");
        const Tensor got_db = copy_here(b);
        bias_backward_into(got_db, here(before));
        expect_close(values(got_db), db, within(16, dtype, 1 + largest(db)), "db");
      });
    }
  }
}

TEST_P(Bias, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor dy = random.tensor({1000, 67}, DType::f32);
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const Tensor db = here(Tensor::zeros({67}, DType::f32));
    bias_backward_into(db, here(dy));
    const Tensor y = copy_here(dy);
    add_bias_into(y, db);
    return {db, y};
  });
}

}  // namespace
}  // namespace phalanx::test
