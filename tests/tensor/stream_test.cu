// Streams, events and the memory of GPU tensors.
#include <cuda_runtime.h>

#include <array>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "phalanx/base/task.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/rows.h"
#include "tests/cuda_test.h"

namespace phalanx::test {
namespace {

// Waits until the host opens it, 20 s at most, so that a broken test fails and does not hang.
__global__ void wait_at(const volatile int* open, int* late) {
  unsigned long long begin = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  while (*open == 0) {
    unsigned long long now = 0;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    if (now - begin > 20'000'000'000ull) {
      *late = 1;
      return;
    }
    __nanosleep(1000);
  }
}

__global__ void fill(float* to, int64_t n, float value) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = value;
}

void fill(const Tensor& t, float value) {
  fill<<<1, 256, 0, current_stream().native()>>>(t.device_data<float>(), t.numel(), value);
  cuda::check_launch("fill");
}

// A kernel in a stream's queue that the host lets pass.
class Gate {
 public:
  Gate() {
    void* flags = nullptr;
    cuda::check(cudaHostAlloc(&flags, 2 * sizeof(int), cudaHostAllocDefault), "cudaHostAlloc");
    flags_ = static_cast<int*>(flags);
    flags_[0] = flags_[1] = 0;
  }
  ~Gate() {
    open();
    (void)cudaDeviceSynchronize();
    (void)cudaFreeHost(flags_);
  }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  void close(Stream& stream) {
    wait_at<<<1, 1, 0, stream.native()>>>(flags_, flags_ + 1);
    cuda::check_launch("wait_at");
  }
  void open() { *static_cast<volatile int*>(flags_) = 1; }
  bool waited_in_vain() const { return flags_[1] != 0; }

 private:
  int* flags_ = nullptr;
};

std::vector<float> floats(const Tensor& t) {
  const Tensor host = t.to(kCpu);
  const auto span = host.span<float>();
  return {span.begin(), span.end()};
}

class StreamTest : public CudaTest {};
class CudaAllocator : public CudaTest {};

TEST_F(StreamTest, CopiesGoThereAndBack) {
  std::mt19937_64 random(std::random_device{}());
  Stream stream(kGpu);
  const StreamScope scope(stream);
  // Pieces of staging are 4 MiB: none, part of one, several, and more than there are.
  for (const int64_t n : {0l, 1l, 1001l, (4l << 20) / 4, (9l << 20) / 4 + 3, (21l << 20) / 4 + 1}) {
    SCOPED_TRACE(n);
    const Tensor host = Tensor::empty({n}, DType::f32);
    for (float& v : host.span<float>()) v = static_cast<float>(random() % 100000);
    const Tensor there = host.to(kGpu);
    EXPECT_EQ(there.device(), kGpu);
    const Tensor twin = Tensor::empty({n}, DType::f32, kGpu);
    copy_into(twin, there);
    const Tensor back = twin.to(kCpu);
    ASSERT_EQ(std::memcmp(back.raw(), host.raw(), host.bytes()), 0);
    if (n > 10) EXPECT_EQ(floats(there.slice(3, 7))[2], host.span<float>()[5]);
  }
}

TEST_F(StreamTest, ZerosCountsAndRows) {
  Stream stream(kGpu);
  const StreamScope scope(stream);
  const Tensor t = Tensor::zeros({1000}, DType::f32, kGpu);
  EXPECT_EQ(floats(t), std::vector<float>(1000, 0.f));
  const Rows rows = all_rows(Tensor::empty({7, 3}, DType::f32, kGpu));
  EXPECT_EQ(rows.live.to(kCpu).data<int64_t>()[0], 7);
  EXPECT_EQ(rows_like(rows, {0, 2}, DType::f64).data.device(), kGpu);
}

TEST_F(StreamTest, WrongUseIsABrokenPromise) {
  EXPECT_THROW((void)Tensor::empty({1}, DType::f32, kGpu), BrokenPromise);  // no StreamScope
  EXPECT_THROW((void)cuda_initialise(), BrokenPromise);                     // a second time
  Stream stream(kGpu);
  const StreamScope scope(stream);
  const Tensor t = Tensor::zeros({4}, DType::f32, kGpu);
  EXPECT_THROW((void)t.span<float>(), BrokenPromise);
  EXPECT_THROW((void)t.raw(), BrokenPromise);
  EXPECT_THROW((void)t.device_data<double>(), BrokenPromise);
  EXPECT_THROW((void)Tensor::zeros({4}, DType::f32).device_data<float>(), BrokenPromise);
  EXPECT_THROW((void)all_rows(t).count(), BrokenPromise);
  EXPECT_THROW(record_stream(Tensor::zeros({4}, DType::f32), stream), BrokenPromise);
  EXPECT_THROW((void)Stream(kCpu), BrokenPromise);
  EXPECT_THROW((void)Stream(cuda_device(200)), Error);
}

TEST_F(StreamTest, AnEventOrdersStreamsWithoutTheHost) {
  Stream producer(kGpu);
  Stream consumer(kGpu);
  Gate gate;
  Event written;
  EXPECT_TRUE(written.passed());
  Tensor x;
  {
    const StreamScope scope(producer);
    x = Tensor::zeros({100}, DType::f32, kGpu);
    gate.close(producer);
    fill(x, 5);
    written.record(producer);
  }
  const StreamScope scope(consumer);
  const Tensor y = Tensor::empty({100}, DType::f32, kGpu);
  consumer.wait(written);
  record_stream(x, consumer);
  copy_into(y, x);
  EXPECT_FALSE(written.passed());
  gate.open();
  EXPECT_EQ(floats(y), std::vector<float>(100, 5.f));
  EXPECT_TRUE(written.passed());
  written.wait();
  EXPECT_FALSE(gate.waited_in_vain());
}

Task<Tensor> copy_behind(const Event* event, Tensor x, std::vector<int>* order, int name) {
  order->push_back(name);
  const Tensor y = Tensor::empty({100}, DType::f32, x.device());
  co_await Behind(*event);
  order->push_back(name);
  copy_into(y, x);
  co_return y;
}

TEST_F(StreamTest, AwaitingAnEventAlternatesTasksAndNeverBlocksTheHost) {
  Stream communication(kGpu);
  Stream computation(kGpu);
  const StreamScope scope(computation);
  Gate gate;
  Event arrived;
  const Tensor x = Tensor::zeros({100}, DType::f32, kGpu);
  computation.synchronise();
  {
    const StreamScope other(communication);
    gate.close(communication);
    fill(x, 3);
    arrived.record(communication);
  }
  std::vector<int> order;
  const auto [a, b] = run(overlap(copy_behind(&arrived, x, &order, 1), copy_behind(&arrived, x, &order, 2)));
  EXPECT_EQ(order, (std::vector<int>{1, 2, 1, 2}));
  EXPECT_FALSE(arrived.passed());  // both tasks have ended, the work they queued has not begun
  gate.open();
  EXPECT_EQ(floats(a), std::vector<float>(100, 3.f));
  EXPECT_EQ(floats(b), std::vector<float>(100, 3.f));
  EXPECT_FALSE(gate.waited_in_vain());
}

TEST_F(CudaAllocator, ABlockReturnsToItsStreamAtOnce) {
  Stream stream(kGpu);
  const StreamScope scope(stream);
  Gate gate;
  gate.close(stream);
  const std::byte* at = nullptr;
  {
    const Tensor x = Tensor::empty({1000}, DType::f32, kGpu);
    fill(x, 1);  // still queued when x goes
    at = x.address();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % 256, 0u);
  }
  const Tensor y = Tensor::empty({1010}, DType::f32, kGpu);
  EXPECT_EQ(y.address(), at);
  fill(y, 2);
  gate.open();
  EXPECT_EQ(floats(y), std::vector<float>(1010, 2.f));
}

// A tensor of one stream is read on another, whose queue the gate holds up; meanwhile the tensor goes, and
// the first stream takes memory of that size and writes it.
struct Reuse {
  bool same_block;          // while the reader had not run
  bool same_block_later;    // after it had
  std::vector<float> read;  // 5 was written for the reader, 9 later
};

Reuse reuse_while_read(bool recorded) {
  constexpr Device kGpu = cuda_device(0);
  Stream home(kGpu);
  Stream other(kGpu);
  Gate gate;
  const StreamScope scope(home);
  Tensor x = Tensor::empty({3000}, DType::f32, kGpu);
  const std::byte* const at = x.address();
  Tensor read;
  fill(x, 5);
  Event written;
  written.record(home);
  {
    const StreamScope reading(other);
    read = Tensor::empty({3000}, DType::f32, kGpu);
    other.wait(written);
    gate.close(other);
    copy_into(read, x);
    if (recorded) record_stream(x, other);
  }
  x = Tensor();
  const Tensor next = Tensor::empty({3000}, DType::f32, kGpu);
  fill(next, 9);
  home.synchronise();
  gate.open();
  Reuse out = {.same_block = next.address() == at, .same_block_later = false, .read = {}};
  other.synchronise();
  out.read = floats(read);
  const Tensor later = Tensor::empty({3000}, DType::f32, kGpu);
  out.same_block_later = later.address() == at;
  return out;
}

TEST_F(CudaAllocator, ABlockUsedOnAnotherStreamWaitsForIt) {
  const Reuse with = reuse_while_read(true);
  EXPECT_FALSE(with.same_block);
  EXPECT_TRUE(with.same_block_later);
  EXPECT_EQ(with.read, std::vector<float>(3000, 5.f));
  // What record_stream is there for: without it, the reader finds what was written later.
  const Reuse without = reuse_while_read(false);
  EXPECT_TRUE(without.same_block);
  EXPECT_EQ(without.read, std::vector<float>(3000, 9.f));
}

TEST_F(CudaAllocator, TheSteadyStateAllocatesNothing) {
  std::mt19937 random(std::random_device{}());
  Stream home(kGpu);
  Stream other(kGpu);
  const StreamScope scope(home);
  const auto step = [&] {
    std::vector<Tensor> kept;
    for (int i = 0; i < 20; ++i) {
      kept.push_back(Tensor::empty({100'000 + static_cast<int64_t>(random() % 1000)}, DType::f32, kGpu));
      if (i % 3 == 0) record_stream(kept.back(), other);
    }
    kept.clear();
    other.synchronise();
  };
  step();
  step();
  const MemoryStats warm = home.memory();
  for (int i = 0; i < 50; ++i) step();
  EXPECT_EQ(home.memory().system_allocations, warm.system_allocations);
  EXPECT_EQ(home.memory().reserved, warm.reserved);
  EXPECT_EQ(home.memory().in_use, 0u);
  EXPECT_EQ(home.memory().peak, warm.peak);
  EXPECT_GE(warm.peak, 20u * 400'000u);
  home.reset_peak();
  EXPECT_EQ(home.memory().peak, 0u);
}

TEST_F(CudaAllocator, LargeBlocksServeOtherSizesAndComeTogetherAgain) {
  Stream stream(kGpu);
  const StreamScope scope(stream);
  constexpr int64_t kWhole = int64_t{100} << 20;
  Tensor whole = Tensor::empty({kWhole}, DType::f32, kGpu);
  const std::byte* const at = whole.address();
  fill(whole, 1);
  const MemoryStats taken = stream.memory();
  for (int round = 0; round < 3; ++round) {
    whole = Tensor();
    std::vector<Tensor> parts;
    for (int i = 0; i < 3; ++i) {
      parts.push_back(Tensor::empty({kWhole / 4}, DType::f32, kGpu));
      fill(parts.back(), static_cast<float>(i));
    }
    for (int i = 0; i < 3; ++i) {
      EXPECT_GE(parts[static_cast<size_t>(i)].address(), at);
      EXPECT_LE(parts[static_cast<size_t>(i)].address() + kWhole, at + 4 * kWhole);
      EXPECT_EQ(floats(parts[static_cast<size_t>(i)]), std::vector<float>(kWhole / 4, static_cast<float>(i)));
    }
    std::swap(parts[0], parts[1]);
    parts.clear();
    whole = Tensor::empty({kWhole}, DType::f32, kGpu);
    EXPECT_EQ(whole.address(), at);
  }
  EXPECT_EQ(stream.memory().system_allocations, taken.system_allocations);
  EXPECT_EQ(stream.memory().reserved, taken.reserved);
  EXPECT_EQ(stream.memory().in_use, taken.in_use);
}

TEST_F(CudaAllocator, SmallBlocksAreCutFromTheReserve) {
  Stream stream(kGpu);
  const StreamScope scope(stream);
  size_t before = 0;
  size_t after = 0;
  size_t total = 0;
  cuda::check(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
  std::vector<Tensor> kept;
  for (int i = 0; i < 8; ++i) kept.push_back(Tensor::empty({(1 << 20) + i}, DType::f32, kGpu));
  cuda::check(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
  EXPECT_EQ(before, after);
}

TEST_F(CudaAllocator, TensorsOutliveTheirStreamAndThread) {
  Tensor kept;
  std::thread([&] {
    Stream stream(kGpu);
    const StreamScope scope(stream);
    kept = Tensor::empty({1000}, DType::f32, kGpu);
    fill(kept, 7);
    stream.synchronise();
  }).join();
  Stream stream(kGpu);  // takes over the queue and its pool
  const StreamScope scope(stream);
  EXPECT_EQ(floats(kept), std::vector<float>(1000, 7.f));
  kept = Tensor();
  const int64_t made = stream.memory().system_allocations;
  const Tensor again = Tensor::empty({1000}, DType::f32, kGpu);
  EXPECT_EQ(stream.memory().system_allocations, made);
}

TEST_F(CudaAllocator, AFullGpuIsAnErrorAndIdleMemoryIsGivenBackFirst) {
  Stream stream(kGpu);
  const StreamScope scope(stream);
  EXPECT_THROW((void)Tensor::empty({1, int64_t{1} << 44}, DType::u8, kGpu), Error);
  size_t free_bytes = 0;
  size_t total = 0;
  cuda::check(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
  const auto n = static_cast<int64_t>(free_bytes / 8 * 5);
  (void)Tensor::empty({n}, DType::u8, kGpu);
  (void)Tensor::empty({n / 10 * 13}, DType::u8, kGpu);  // beside the first it would not fit
  const Tensor small = Tensor::zeros({10}, DType::f32, kGpu);
  EXPECT_EQ(floats(small), std::vector<float>(10, 0.f));
}

// Two ranks share the GPU: each makes tensors that the other reads and drops.
TEST_F(CudaAllocator, RanksPassTensorsToOneAnother) {
  constexpr int kRounds = 300;
  std::array<std::atomic<int>, 2> sent{};
  std::array<std::vector<Tensor>, 2> tensors;
  std::array<std::vector<Event>, 2> written;
  for (auto& t : tensors) t.resize(kRounds);
  for (auto& w : written) w.resize(kRounds);
  std::array<int, 2> wrong{};
  const auto rank = [&](size_t me) {
    Stream stream(kGpu);
    const StreamScope scope(stream);
    std::vector<Tensor> sums;
    for (int i = 0; i < kRounds; ++i) {
      const auto at = static_cast<size_t>(i);
      tensors[me][at] = Tensor::empty({5000 + i}, DType::f32, kGpu);
      fill(tensors[me][at], static_cast<float>(i));
      written[me][at].record(stream);
      sent[me].store(i + 1, std::memory_order_release);
      while (sent[1 - me].load(std::memory_order_acquire) <= i) std::this_thread::yield();
      const Tensor theirs = std::move(tensors[1 - me][at]);
      stream.wait(written[1 - me][at]);
      record_stream(theirs, stream);
      sums.push_back(Tensor::empty(theirs.shape(), DType::f32, kGpu));
      copy_into(sums.back(), theirs);
    }
    for (int i = 0; i < kRounds; ++i) {
      wrong[me] += floats(sums[static_cast<size_t>(i)]) !=
                   std::vector<float>(5000 + static_cast<size_t>(i), static_cast<float>(i));
    }
  };
  std::thread other(rank, 1);
  rank(0);
  other.join();
  EXPECT_EQ(wrong, (std::array{0, 0}));
}

}  // namespace
}  // namespace phalanx::test
