// Expert parallelism on four ranks, which are threads of this program: tokens go to the ranks that have their
// two experts, each rank multiplies its rows by its number + 1, and the sums come back.
#include <cstdio>
#include <stdexcept>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/ep/buffer.h"

using phalanx::DType;
using phalanx::Tensor;

constexpr int kRanks = 4;
constexpr int kExperts = 8;  // two on each rank
constexpr int kTokens = 100;
constexpr int kWidth = 64;

void hello(phalanx::Group& world) {
  const Tensor x = Tensor::empty({kTokens, kWidth}, DType::f32);
  const Tensor chosen = Tensor::empty({kTokens, 2}, DType::i64);
  for (int i = 0; i < kTokens * kWidth; ++i) x.data<float>()[i] = static_cast<float>(i + world.rank());
  for (int i = 0; i < 2 * kTokens; ++i) chosen.data<int64_t>()[i] = (i / 2 + i % 2 * 3) % kExperts;

  phalanx::ep::Buffer buffer(world, kExperts);
  const phalanx::ep::Dispatched in = run(buffer.dispatch(x, chosen, Tensor()));
  for (float& v : in.x_RD.data.span<float>()) v *= static_cast<float>(world.rank() + 1);
  const phalanx::ep::Combined out = run(buffer.combine(in.x_RD, in.handle, Tensor()));

  for (int i = 0; i < kTokens * kWidth; ++i) {  // the experts t and t + 3 lie on different ranks
    const int token = i / kWidth;
    const int factor = token % kExperts / 2 + 1 + (token + 3) % kExperts / 2 + 1;
    const float expected = x.data<float>()[i] * static_cast<float>(factor);
    if (out.x_TD.data<float>()[i] != expected) throw std::runtime_error("a sum is wrong");
  }
  std::printf("rank %d: %lld rows came, every sum is right\n", world.rank(),
              static_cast<long long>(in.x_RD.count()));
}

int main() { phalanx::run_thread_ranks({.ranks = kRanks}, hello); }
