// A training step in its steady state takes no memory from the system: neither for tensors nor for anything
// else.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <new>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/rank_run.h"
#include "tests/train/small_runs.h"

namespace {
std::atomic<int64_t> allocations{0};

void* counted(size_t bytes, size_t alignment = alignof(std::max_align_t)) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::aligned_alloc(alignment, (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment);
}

void* given(void* p) {
  if (!p) throw std::bad_alloc();
  return p;
}
}  // namespace

// Every `new` of this program, the library's included; arrays end here too. Not inlined, or g++ takes new and
// free for a mismatch.
[[gnu::noinline]] void* operator new(size_t bytes) { return given(counted(bytes)); }
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t alignment) {
  return given(counted(bytes, static_cast<size_t>(alignment)));
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes); }
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace phalanx {
namespace {

struct Case {
  const char* name;
  TrainConfig (*config)(const Layout&, const char*);
  Layout layout;
  const char* schedule;
  int zero = 0;
  int ulysses = 0;
  int slices = 1;
  bool tp_overlap = false;
};

// So many tokens and experts that what ops keep for each piece of work is long.
TrainConfig long_run(const Layout& layout, const char* schedule) {
  TrainConfig c = small_moe(layout, schedule);
  c.model.layers = 1;
  c.model.width = 16;
  c.model.heads = 1;
  c.model.head_dim = 16;
  c.model.kv_heads = 1;
  c.model.context = 512;
  c.model.moe = {.experts = 40, .top_k = 3, .expert_width = 8};
  c.train.batch = 24;
  c.train.microbatch = 24;
  return c;
}

class SteadyState : public testing::TestWithParam<Case> {};

// The same few steps again and again, without learning, so that experts receive different numbers of rows
// from step to step, each of them seen before.
TEST_P(SteadyState, AllocatesNothing) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  TrainConfig config = GetParam().config(GetParam().layout, GetParam().schedule);
  config.parallel.zero = GetParam().zero;
  config.parallel.ulysses = GetParam().ulysses;
  config.train.slices = GetParam().slices;
  config.parallel.tp_overlap = GetParam().tp_overlap;
  config.model.moe.bias_rate = 1e-9;  // takes its path; no token changes its experts
  config.model.moe.z_loss = 1e-3;
  config.model.moe.capacity = 1;
  const Dataset data = random_text(config, seed);
  constexpr int kSteps = 3;
  run_thread_ranks({.ranks = config.parallel.ranks, .threads_per_rank = 2}, [&](Group& world) {
    RankRun rank(config, data.tokenizer().vocabulary(), world);
    std::array<std::vector<Batch>, kSteps> steps;
    for (int s = 0; s < kSteps; ++s) steps[s] = data.train_batches(s, rank.share());
    const auto go = [&] {
      for (int s = 0; s < kSteps; ++s) train_step(rank.trainer(), steps[s], 0, static_cast<uint64_t>(s));
      world.barrier().wait();
    };
    for (int round = 0; round < 2; ++round) go();  // also from the last step to the first
    const MemoryStats memory = cpu_allocator().stats();
    // How many messages are on their way at once depends on who is late, up to as many as may be: a round
    // that sees more than those before it keeps more. All ranks count alike, between two barriers.
    int64_t allocated = 1;
    for (int round = 0; round < 6 && allocated > 0; ++round) {
      const int64_t before = allocations.load();
      world.barrier().wait();
      go();
      allocated = allocations.load() - before;
      world.barrier().wait();
    }
    EXPECT_EQ(allocated, 0) << "rank " << world.rank();
    EXPECT_EQ(cpu_allocator().stats().system_allocations, memory.system_allocations);
    EXPECT_EQ(cpu_allocator().stats().in_use, memory.in_use);
    world.barrier().wait();  // a rank that leaves frees what it has of others
  });
}

constexpr const char* kSequential = "sequential";
constexpr const char* kOverlapped = "overlapped";

INSTANTIATE_TEST_SUITE_P(
    Runs, SteadyState,
    testing::Values(
        Case{"long", long_run, {}, kSequential}, Case{"gpt", small_gpt, {}, kSequential},
        Case{"gpt_overlapped", small_gpt, {}, kOverlapped},
        Case{"gpt_dp2", small_gpt, {.dp = 2}, kSequential},
        Case{"llama_dp2_overlapped", small_llama, {.dp = 2}, kOverlapped},
        Case{"moe", small_moe, {}, kSequential}, Case{"moe_overlapped", small_moe, {}, kOverlapped},
        Case{"moe_dp2", small_moe, {.dp = 2}, kSequential},
        Case{"gpt_dp2_zero1", small_gpt, {.dp = 2}, kSequential, 1},
        Case{"gpt_dp2_zero2", small_gpt, {.dp = 2}, kSequential, 2},
        Case{"moe_dp2_ep2_zero3", small_moe, {.dp = 2, .ep = 2}, kOverlapped, 3},
        Case{"gpt_pp2_1f1b", small_gpt, {.pp = 2}, "1f1b"},
        Case{"moe_pp2_dualpipe", small_moe, {.pp = 2}, "dualpipe"},
        Case{"mtp_dp2_ep2_zero3", small_mtp, {.dp = 2, .ep = 2}, kOverlapped, 3},
        Case{"mtp_pp2_zb_h1", small_mtp, {.pp = 2}, "zb-h1"},
        Case{"llama_cp2", small_llama, {.cp = 2}, kSequential},
        Case{"mla_cp2_tp2_overlapped", small_mla, {.cp = 2, .tp = 2}, kOverlapped},
        Case{"mla_ring_cp2", small_mla, {.cp = 2}, kSequential, 0, 1},
        Case{"moe_ring_cp2_overlapped", small_moe, {.cp = 2}, kOverlapped, 0, 1},
        Case{"llama_usp_cp4", small_llama, {.cp = 4}, kSequential, 0, 2},
        Case{"gpt_tp2", small_gpt, {.tp = 2}, kSequential},
        Case{"moe_dp2_tp2_ep4_overlapped", small_moe, {.dp = 2, .tp = 2, .ep = 4}, kOverlapped},
        Case{"moe_tp2_etp2", small_moe, {.tp = 2, .etp = 2}, kSequential},
        Case{"moe_dp2_ep2", small_moe, {.dp = 2, .ep = 2}, kSequential},
        Case{"moe_dp2_ep2_overlapped", small_moe, {.dp = 2, .ep = 2}, kOverlapped},
        Case{"moe_slices_pp2", small_moe, {.pp = 2}, "zb-h1", 0, 0, 4},
        Case{"mla_slices_ring_cp2", small_mla, {.cp = 2}, kOverlapped, 0, 1, 2},
        Case{"gpt_tp4_in_chunks", small_gpt, {.tp = 4}, kSequential, 0, 0, 1, true},
        Case{"moe_tp2_ep2_in_chunks", small_moe, {.tp = 2, .ep = 2}, kOverlapped, 0, 0, 1, true},
        Case{"mla_slices_pp2_tp2_in_chunks", small_mla, {.pp = 2, .tp = 2}, "zb-h1", 0, 0, 2, true}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace phalanx
