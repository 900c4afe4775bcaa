// Expert parallelism on four ranks, which are threads of this program: tokens go to the ranks that have their
// experts, something is computed there, and the results come back.
#include <cmath>
#include <cstdio>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/ep/buffer.h"

using phalanx::DType;
using phalanx::Tensor;

constexpr int kRanks = 4;
constexpr int kExperts = 8;
constexpr int kTokens = 100;
constexpr int kWidth = 64;
constexpr int kTopK = 2;

// Every rank's tokens choose two different experts; the rank that has one gives the row times (rank + 1) for
// each.
void hello(phalanx::Group& world) {
  std::mt19937 random(static_cast<unsigned>(world.rank()));
  const Tensor x = Tensor::empty({kTokens, kWidth}, DType::f32);
  const Tensor chosen = Tensor::empty({kTokens, kTopK}, DType::i64);
  const Tensor weights = Tensor::empty({kTokens, kTopK}, DType::f32);
  for (float& v : x.span<float>()) v = std::normal_distribution<float>()(random);
  for (float& w : weights.span<float>()) w = 0.5F;
  for (int t = 0; t < kTokens; ++t) {
    const auto first = static_cast<int64_t>(random() % kExperts);
    chosen.data<int64_t>()[t * kTopK] = first;
    chosen.data<int64_t>()[t * kTopK + 1] =
        (first + 1 + static_cast<int64_t>(random() % (kExperts - 1))) % kExperts;
  }

  phalanx::ep::Buffer buffer(world, kExperts);
  const phalanx::ep::Dispatched in = run(buffer.dispatch(x, chosen, weights));
  const Tensor y = in.x_RD.data;  // what the experts here make of their rows
  for (int64_t r = 0; r < y.rows(); ++r) {
    for (float& v : y.slice(r, r + 1).span<float>()) v *= static_cast<float>(world.rank() + 1);
  }
  const phalanx::ep::Combined out = run(buffer.combine(in.x_RD, in.handle, Tensor()));

  double worst = 0;  // against the sum over the ranks that a token went to
  for (int t = 0; t < kTokens; ++t) {
    const int64_t a = chosen.data<int64_t>()[t * kTopK] / (kExperts / kRanks);
    const int64_t b = chosen.data<int64_t>()[t * kTopK + 1] / (kExperts / kRanks);
    const auto factor = static_cast<float>(a == b ? a + 1 : a + b + 2);
    for (int i = t * kWidth; i < (t + 1) * kWidth; ++i) {
      worst = std::fmax(worst, std::fabs(out.x_TD.data<float>()[i] - factor * x.data<float>()[i]));
    }
  }
  if (worst > 1e-5) throw phalanx::Error("rank {}: a sum is off by {}", world.rank(), worst);
  std::printf("rank %d: %lld rows came, every sum is right\n", world.rank(),
              static_cast<long long>(y.rows()));
}

int main() {
  try {
    phalanx::run_thread_ranks({.ranks = kRanks}, hello);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "ep_hello: %s\n", e.what());
    return 1;
  }
}
