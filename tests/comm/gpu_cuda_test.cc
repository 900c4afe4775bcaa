// Collectives of tensors on GPUs by ranks that are threads of one process, on this machine's GPUs in turn:
// the same bits as on the CPU.
#include <cstring>
#include <functional>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/ops/elementwise.h"
#include "tests/cuda_test.h"

namespace phalanx::test {
namespace {

class GpuRanks : public CudaTest {
 protected:
  // body(world, this rank's GPU).
  static void run(int ranks, const std::function<void(Group&, Device)>& body) {
    run_thread_ranks({.ranks = ranks, .deadlines = {.progress = std::chrono::seconds(30)}},
                     [&](Group& world) {
                       const Device gpu = device_of_rank(Device::Kind::cuda, world.rank());
                       const DeviceScope scope(gpu);
                       body(world, gpu);
                       synchronise(gpu);
                     });
  }
};

// Small integers: sums are exact in every dtype, and elements differ by rank and place.
Tensor numbers(const Shape& shape, DType dtype, int rank, uint64_t seed) {
  std::mt19937_64 engine(seed + static_cast<uint64_t>(rank));
  const Tensor t = Tensor::zeros(shape, dtype);
  const auto fill = [&](auto zero) {
    for (auto& x : t.span<decltype(zero)>())
      x = static_cast<decltype(zero)>(static_cast<int>(engine() % 64) - 32);
  };
  if (dtype == DType::f32) fill(float{});
  if (dtype == DType::f64) fill(double{});
  if (dtype == DType::i64) fill(int64_t{});
  if (dtype == DType::i32) fill(int32_t{});
  if (dtype == DType::bf16) {
    for (auto& x : t.span<bf16>()) x = bf16::from(static_cast<float>(static_cast<int>(engine() % 64) - 32));
  }
  if (dtype == DType::f16) {
    for (auto& x : t.span<f16>()) x = f16::from(static_cast<float>(static_cast<int>(engine() % 64) - 32));
  }
  return t;
}

void expect_same(const Tensor& got, const Tensor& want, std::string_view what) {
  const Tensor here = got.to(kCpu);
  ASSERT_EQ(here.shape(), want.shape()) << what;
  ASSERT_EQ(here.dtype(), want.dtype()) << what;
  EXPECT_TRUE(got.bytes() == 0 || std::memcmp(here.raw(), want.raw(), want.bytes()) == 0) << what;
}

Tensor copied(const Tensor& t) {
  const Tensor c = Tensor::empty(t.shape(), t.dtype(), t.device());
  copy_into(c, t);
  return c;
}

TEST_F(GpuRanks, CollectivesEqualTheCpus) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const int ranks : {1, 2, 3, 4}) {
    run(ranks, [&](Group& world, Device gpu) {
      for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64, DType::i32}) {
        for (const int64_t rows : {0, 1, 7, 1000}) {
          const Tensor x = numbers({rows * ranks, 3}, dtype, world.rank(), seed);
          for (const Reduce reduce : {Reduce::sum, Reduce::max, Reduce::min}) {
            const Tensor want = world.all_reduce(copied(x), reduce).wait();
            expect_same(world.all_reduce(x.to(gpu), reduce).wait(), want, "all_reduce");
            const Tensor part = world.reduce_scatter(copied(x), reduce).wait();
            expect_same(world.reduce_scatter(x.to(gpu), reduce).wait(), part, "reduce_scatter");
          }
          const Tensor gathered = world.all_gather(x).wait();
          expect_same(world.all_gather(x.to(gpu)).wait(), gathered, "all_gather");
          const Tensor sent = world.broadcast(copied(x), ranks - 1).wait();
          expect_same(world.broadcast(x.to(gpu), ranks - 1).wait(), sent, "broadcast");
          const std::vector<int64_t> counts(static_cast<size_t>(ranks), rows);
          const Tensor turned = world.all_to_all(x, counts, counts).wait();
          expect_same(world.all_to_all(x.to(gpu), counts, counts).wait(), turned, "all_to_all");
        }
      }
    });
  }
}

// A tensor that is written again right after a collective, and temporaries that go: nobody reads what comes
// later, and nobody waits on the host.
TEST_F(GpuRanks, StreamsAreOrdered) {
  constexpr int kRanks = 4;
  constexpr int kTurns = 50;
  run(kRanks, [&](Group& world, Device gpu) {
    const int64_t n = 1 << 20;
    const Tensor one = Tensor::empty({n}, DType::f32);
    std::ranges::fill(one.span<float>(), 1.0F);
    const Tensor step = one.to(gpu);
    const Tensor x = Tensor::zeros({n}, DType::f32, gpu);
    const Tensor total = Tensor::zeros({n}, DType::f32, gpu);
    for (int turn = 1; turn <= kTurns; ++turn) {
      add_into(x, step);  // x = turn
      const Tensor sent = add(x, x);
      const Tensor received = Tensor::empty({n}, DType::f32, gpu);
      // Each time to another rank: where there are several GPUs, to another one.
      const int away = 1 + turn % (kRanks - 1);
      PooledVector<P2P> messages = {send_to((world.rank() + away) % kRanks, sent),
                                    recv_from((world.rank() + kRanks - away) % kRanks, received)};
      world.exchange(std::move(messages)).wait();
      add_into(total, received);
      const Tensor sum = copied(x);
      world.all_reduce(sum).wait();
      add_into(total, sum);
    }
    const Tensor all = total.to(kCpu);
    const float want = (2 + kRanks) * kTurns * (kTurns + 1) / 2.0F;
    EXPECT_TRUE(std::ranges::all_of(all.span<float>(), [&](float v) { return v == want; }));
  });
}

}  // namespace
}  // namespace phalanx::test
