#include "phalanx/parallel/data_parallel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <random>
#include <set>

#include "phalanx/comm/transport/threads.h"

namespace phalanx {
namespace {

// Initialises one tensor under a layout; every rank's slice must hold the bits of the full tensor, and
// together the ranks must cover it.
void expect_slices_of_the_full_tensor(const Layout& layout, const Placement& placement, const Shape& shape,
                                      DType dtype, uint64_t seed) {
  Tensor full;
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    Mesh mesh(world, {});
    ParameterStore store(mesh, dtype);
    const Parameter& p = store.add({.name = "w", .shape = shape});
    store.initialise(seed);
    full = p.value();
  });
  std::mutex mutex;
  std::set<int64_t> covered;
  run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
    Mesh mesh(world, layout);
    ParameterStore store(mesh, dtype);
    store.add({.name = "before", .shape = {3}});
    const Parameter& p = store.add({.name = "w", .shape = shape, .placement = placement});
    store.initialise(seed);
    const Tensor local = p.value();
    const size_t size = dtype_size(dtype);
    const std::lock_guard lock(mutex);
    for (int64_t i = 0; i < local.numel(); ++i) {
      const int64_t g = p.slice().global_index(i);
      covered.insert(g);
      ASSERT_EQ(std::memcmp(local.raw() + static_cast<size_t>(i) * size,
                            full.raw() + static_cast<size_t>(g) * size, size),
                0);
    }
  });
  EXPECT_EQ(static_cast<int64_t>(covered.size()), shape.numel());
}

TEST(Placement, InitialisingAnyShardGivesSlicesOfTheFullTensorBitwise) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const Layout eight = {.pp = 1, .dp = 2, .cp = 2, .tp = 2, .ep = 2, .etp = 2};
  const std::vector<Placement> placements = {{},
                                             {{Axis::tp, 0}},
                                             {{Axis::tp, 1}},
                                             {{Axis::ep, 0}},
                                             {{Axis::ep, 0}, {Axis::etp, 2}},
                                             {{Axis::ep, 1}, {Axis::etp, 1}},
                                             {{Axis::dp, 2}, {Axis::cp, 0}, {Axis::tp, 2}},
                                             {{.axis = Axis::tp, .dim = 0, .parts = 1}},
                                             {{.axis = Axis::edp, .dim = 1, .uneven = true}}};
  for (const Placement& placement : placements) {
    for (const DType dtype : {DType::f32, DType::f64}) {
      expect_slices_of_the_full_tensor(eight, placement, {4, 12, 8}, dtype, seed);
    }
  }
}

TEST(Placement, UnevenRunsMayBeEmptyAndPartsMayBeShared) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const Layout four = {.dp = 2, .tp = 4};
  for (const int64_t n : {1, 5, 8, 9, 11}) {
    expect_slices_of_the_full_tensor(four, {{.axis = Axis::tp, .dim = 0, .uneven = true}}, {n, 3}, DType::f64,
                                     seed);
    expect_slices_of_the_full_tensor(four, {{.axis = Axis::tp, .dim = 1, .uneven = true}}, {3, n}, DType::f64,
                                     seed);
  }
  for (const int parts : {1, 2, 4}) {
    const Placement placement = {{.axis = Axis::tp, .dim = 0, .parts = parts}};
    expect_slices_of_the_full_tensor(four, placement, {8, 3}, DType::f64, seed);
    run_thread_ranks({.ranks = 8}, [&](Group& world) {
      const Mesh mesh(world, four);
      const std::vector<int> same = holders(placement, mesh);
      EXPECT_EQ(std::ssize(same), 8 / parts);
      for (const int rank : same) {
        EXPECT_EQ(rank % 4 * parts / 4, world.rank() % 4 * parts / 4)
            << "ranks " << rank << ", " << world.rank();
      }
    });
  }
}

// What ZeRO saves of a tensor: any range of its elements, in boxes that hold them in their order.
TEST(Placement, BoxesOfARangeHoldItsElementsInOrder) {
  std::mt19937 random(std::random_device{}());
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<int64_t> extents;
    for (int d = 0; d < static_cast<int>(random() % 5); ++d) extents.push_back(1 + random() % 4);
    LocalSlice slice = {.full = Shape(extents), .local = Shape(extents)};
    for (size_t d = 0; d < extents.size(); ++d) {  // a part of something larger
      slice.begin[d] = static_cast<int64_t>(random() % 3);
      extents[d] += slice.begin[d] + static_cast<int64_t>(random() % 3);
    }
    slice.full = Shape(extents);
    const auto n = static_cast<uint64_t>(slice.local.numel());
    int64_t begin = static_cast<int64_t>(random() % (n + 1));
    int64_t end = static_cast<int64_t>(random() % (n + 1));
    if (begin > end) std::swap(begin, end);
    std::vector<int64_t> expected;
    for (int64_t i = begin; i < end; ++i) expected.push_back(slice.global_index(i));
    std::vector<int64_t> got;
    std::vector<int64_t> got_in_rows;
    const std::vector<LocalSlice> boxes = boxes_of_range(slice, begin, end);
    for (const LocalSlice& box : boxes) {
      EXPECT_EQ(box.full, slice.full);
      for (int64_t i = 0; i < box.local.numel(); ++i) got.push_back(box.global_index(i));
      const std::vector<StridedRows> some = strided_rows(box);
      if (box.local.rank() < 3) {
        EXPECT_EQ(some.size(), 1u);
      }
      for (const StridedRows& s : some) {
        for (int64_t i = 0; i < s.rows * s.columns; ++i) {
          got_in_rows.push_back(s.first + i / s.columns * s.step + i % s.columns);
        }
      }
    }
    EXPECT_EQ(got, expected);
    EXPECT_EQ(got_in_rows, expected);
    EXPECT_LE(boxes.size(), 2 * extents.size() + 1);
  }
}

TEST(Placement, AnAxisThatDoesNotDivideIsNamed) {
  try {
    run_thread_ranks({.ranks = 2}, [](Group& world) {
      Mesh mesh(world, {.tp = 2});
      local_slice("layers.3.q.w", {5, 4}, {{Axis::tp, 0}}, mesh);
    });
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("layers.3.q.w"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("tp = 2"), std::string::npos) << e.what();
  }
}

// Four expert gradients 2, 4, 6, 8 over two ranks must give √120.
TEST(ParameterStore, TheGradientNormCountsEveryElementOnce) {
  for (const Layout& layout :
       {Layout{}, Layout{.dp = 2}, Layout{.dp = 2, .ep = 2}, Layout{.dp = 4, .ep = 2}, Layout{.tp = 2},
        Layout{.tp = 2, .ep = 2}, Layout{.dp = 2, .tp = 2, .ep = 2}}) {
    run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
      Mesh mesh(world, layout);
      ParameterStore store(mesh, DType::f64);
      Parameter& dense = store.add({.name = "dense", .shape = {2}});
      Parameter& experts = store.add(
          {.name = "experts", .shape = {4, 1}, .placement = {{Axis::ep, 0}}, .gradient = OverTp::parts});
      store.initialise(1);
      DataParallel data(store);
      // Each rank holds its share of the gradient's sum.
      const double dp = layout.dp;
      for (int64_t i = 0; i < experts.grad().numel(); ++i) {
        const auto e = static_cast<double>(experts.slice().global_index(i));
        experts.grad().data<double>()[i] = 2 * (e + 1) / mesh.size(Axis::edp);
      }
      run(data.reduce_grads());
      EXPECT_NEAR(run(data.grad_norm()), std::sqrt(120.0), 1e-12);
      dense.grad().data<double>()[1] = 5 / dp;
      store.zero_grads();
      dense.grad().data<double>()[1] = 5 / dp;
      run(data.reduce_grads());
      EXPECT_NEAR(run(data.grad_norm()), 5, 1e-12);
    });
  }
}

// What tp ranks compute of a gradient: the same, which counts once; parts, which are summed; and parts that
// only some of them share (KV heads), or their own.
TEST(ParameterStore, GradientsAreSummedOverThoseThatHaveParts) {
  const Layout layout = {.dp = 2, .tp = 4};
  run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
    Mesh mesh(world, layout);
    ParameterStore store(mesh, DType::f64);
    Parameter& alike = store.add({.name = "alike", .shape = {1}});
    Parameter& parts = store.add({.name = "parts", .shape = {1}, .gradient = OverTp::parts});
    Parameter& shared = store.add({.name = "shared",
                                   .shape = {2},
                                   .placement = {{.axis = Axis::tp, .dim = 0, .parts = 2}},
                                   .gradient = OverTp::parts});
    Parameter& own = store.add({.name = "own", .shape = {4}, .placement = {{.axis = Axis::tp, .dim = 0}}});
    store.initialise(1);
    DataParallel data(store);
    const int t = mesh.coordinate(Axis::tp);
    const double d = mesh.coordinate(Axis::dp) + 1;  // 1 or 2
    alike.grad().data<double>()[0] = d;
    for (Parameter* p : {&parts, &shared, &own}) p->grad().data<double>()[0] = d * std::pow(10, t);
    run(data.reduce_grads());
    EXPECT_EQ(alike.grad().data<double>()[0], 3);
    EXPECT_EQ(parts.grad().data<double>()[0], 3 * 1111);
    EXPECT_EQ(shared.grad().data<double>()[0], 3 * (t < 2 ? 11 : 1100));
    EXPECT_EQ(own.grad().data<double>()[0], 3 * std::pow(10, t));
    double squares = 1 + 1111.0 * 1111 + 11 * 11 + 1100.0 * 1100;
    for (int i = 0; i < 4; ++i) squares += std::pow(100, i);
    EXPECT_NEAR(run(data.grad_norm()), 3 * std::sqrt(squares), 1e-9);
  });
}

TEST(Parameter, TheFirstProductOfAStepOverwritesTheGradient) {
  run_thread_ranks({.ranks = 1}, [](Group& world) {
    Mesh mesh(world, {});
    ParameterStore store(mesh, DType::f64);
    Parameter& by_product = store.add({.name = "by_product", .shape = {1, 1}});
    Parameter& untouched = store.add({.name = "untouched", .shape = {3}});
    store.initialise(1);
    const double two = 2;
    const Tensor factor = Tensor::of(Shape{1, 1}, std::span(&two, 1));
    for (int step = 0; step < 2; ++step) {
      store.zero_grads();
      EXPECT_THROW((void)std::as_const(by_product).grad(), BrokenPromise);
      for (int microbatch = 0; microbatch < 3; ++microbatch) {
        const auto [grad, into] = by_product.grad_sum();
        EXPECT_EQ(into, microbatch == 0 ? Into::replace : Into::add);
        matmul_tn_into(grad, factor, factor, into);
      }
      EXPECT_EQ(std::as_const(by_product).grad().data<double>()[0], 12);
      EXPECT_EQ(std::ranges::count(untouched.grad().span<double>(), 0.0), 3);
      untouched.grad().data<double>()[1] = 7;  // must be gone in the next step
    }
  });
}

// With all its gradients summed, and once they have been used.
TEST(Parameter, GradientsTakeMemoryFromBackwardToTheUpdateAlone) {
  for (const Zero stage : {Zero::none, Zero::optimizer, Zero::gradients}) {
    run_thread_ranks({.ranks = 2}, [&](Group& world) {
      Mesh mesh(world, {.dp = 2});
      ParameterStore store(mesh, DType::f64, {.stage = stage});
      Parameter& p = store.add({.name = "w", .shape = {1000}});
      store.initialise(1);
      DataParallel data(store);
      const size_t before = cpu_allocator().stats().in_use;
      for (int step = 0; step < 2; ++step) {
        store.zero_grads();
        EXPECT_THROW((void)store.own_grad(p), BrokenPromise);
        p.grad().data<double>()[3] += step + 1;
        run(data.reduce_grads());
        EXPECT_EQ(run(data.grad_norm()), 2 * (step + 1));
        EXPECT_EQ(store.own_grad(p).numel(), stage == Zero::none ? 1000 : 500);
        EXPECT_GT(cpu_allocator().stats().in_use, before);
        ParameterStore::bucket_of(p).mark_updated();
        (void)p.value();
        EXPECT_EQ(cpu_allocator().stats().in_use, before);
      }
    });
  }
}

TEST(Parameter, ALeaseKeepsTheValueFromBeingReplaced) {
  run_thread_ranks({.ranks = 1}, [](Group& world) {
    Mesh mesh(world, {});
    ParameterStore store(mesh, DType::f32);
    Parameter& p = store.add({.name = "w", .shape = {2}});
    store.initialise(1);
    const auto use = [](Parameter* parameter) -> Task<> {
      const Lease lease = co_await parameter->use();
      EXPECT_EQ(lease.value().numel(), 2);
      EXPECT_THROW((void)parameter->value(), BrokenPromise);
    };
    run(use(&p));
    EXPECT_NO_THROW((void)p.value());
  });
}

TEST(Layout, ReadsWhatItWrites) {
  EXPECT_EQ(Layout::parse("dp=2,tp=4").text(), "dp=2,tp=4");
  EXPECT_EQ(Layout::parse("").text(), "dp=1");
  EXPECT_EQ(Layout::parse("pp=2,ep=2,dp=2").ranks(), 4);
  for (const char* bad : {"dq=2", "dp=0", "dp", "dp=x", "dp=2,,tp=2", "dp=2;tp=2", "dp=2x"}) {
    EXPECT_THROW(Layout::parse(bad), Error) << bad;
  }
}

}  // namespace
}  // namespace phalanx
