// EPLB against the public example and another way to write it, the tables, the measures, and refusals.
#include "phalanx/ep/balance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "phalanx/base/error.h"
#include "phalanx/ep/balance_bound.h"
#include "tests/ep/balance_cases.h"

namespace phalanx::ep {
namespace {

// As the definition reads, one choice after the other over lists that are searched through.
struct Reference {
  struct Item {
    int expert;
    int replica;
    float load;
  };

  // The items of each pack.
  static std::vector<std::vector<Item>> packed(std::vector<Item> items, size_t packs) {
    std::vector<std::vector<Item>> out(packs);
    const size_t room = items.size() / packs;
    if (room == 1) {
      for (size_t p = 0; p < packs; ++p) out[p] = {items[p]};
      return out;
    }
    std::stable_sort(items.begin(), items.end(),
                     [](const Item& a, const Item& b) { return a.load > b.load; });
    std::vector<float> load(packs, 0);
    for (const Item& item : items) {
      int to = -1;
      for (size_t p = 0; p < packs; ++p) {
        if (out[p].size() < room && (to < 0 || load[p] < load[static_cast<size_t>(to)]))
          to = static_cast<int>(p);
      }
      out[static_cast<size_t>(to)].push_back(item);
      load[static_cast<size_t>(to)] += item.load;
    }
    return out;
  }

  // Each expert once, then the one whose replicas are largest again.
  static std::vector<Item> replicated(const std::vector<int>& experts, const float* weight, size_t replicas) {
    std::vector<int> copies(experts.size(), 1);
    std::vector<Item> items;
    for (const int e : experts) items.push_back({e, 0, 0});
    while (items.size() < replicas) {
      size_t most = 0;
      for (size_t i = 1; i < experts.size(); ++i) {
        const auto share = [&](size_t j) { return weight[experts[j]] / static_cast<float>(copies[j]); };
        if (share(i) > share(most)) most = i;
      }
      items.push_back({experts[most], copies[most]++, 0});
    }
    for (Item& item : items) {
      const auto i = std::ranges::find(experts, item.expert) - experts.begin();
      item.load = weight[item.expert] / static_cast<float>(copies[static_cast<size_t>(i)]);
    }
    return items;
  }

  // The replicas in the slots of a layer.
  static std::vector<Item> layer(const float* weight, const BalanceSizes& s) {
    const bool closed = s.groups % s.nodes == 0;
    const auto groups = static_cast<size_t>(closed ? s.groups : 1);
    const auto nodes = static_cast<size_t>(closed ? s.nodes : 1);
    const auto size = static_cast<int>(s.experts / static_cast<int64_t>(groups));
    std::vector<Item> items;
    for (int g = 0; g < static_cast<int>(groups); ++g) {
      float sum = 0;
      for (int e = g * size; e < (g + 1) * size; ++e) sum += weight[e];
      items.push_back({g, 0, sum});
    }
    std::vector<Item> slots;
    for (const auto& node : packed(items, nodes)) {
      std::vector<int> experts;
      for (const Item& g : node) {
        for (int e = g.expert * size; e < (g.expert + 1) * size; ++e) experts.push_back(e);
      }
      const auto replicas = replicated(experts, weight, static_cast<size_t>(s.replicas) / nodes);
      for (const auto& gpu : packed(replicas, static_cast<size_t>(s.gpus) / nodes)) {
        slots.insert(slots.end(), gpu.begin(), gpu.end());
      }
    }
    return slots;
  }
};

void expect_reference(const std::vector<float>& weight, const BalanceSizes& s) {
  const ReplicaPlacement p = rebalance_experts(weight, s);
  ASSERT_EQ(std::ssize(p.phy2log), s.layers * s.replicas);
  ASSERT_EQ(std::ssize(p.log2phy), s.layers * s.experts * p.most_copies);
  int64_t listed = 0;
  for (int64_t l = 0; l < s.layers; ++l) {
    const auto slots = Reference::layer(weight.data() + l * s.experts, s);
    for (int64_t i = 0; i < s.replicas; ++i) {
      const Reference::Item& item = slots[static_cast<size_t>(i)];
      ASSERT_EQ(p.slots_of_layer(l)[static_cast<size_t>(i)], item.expert) << "layer " << l << ", slot " << i;
      const int64_t expert = l * s.experts + item.expert;
      ASSERT_LT(item.replica, p.logcnt[static_cast<size_t>(expert)]);
      ASSERT_EQ(p.log2phy[static_cast<size_t>(expert * p.most_copies + item.replica)], i);
    }
  }
  for (const int32_t slot : p.log2phy) listed += slot >= 0;
  EXPECT_EQ(listed, s.layers * s.replicas);  // the rest is −1
  EXPECT_EQ(std::ranges::max(p.logcnt), p.most_copies);
}

TEST(Balance, EqualsThePublicExample) {
  const std::vector<float> weight = {90, 132, 40,  61, 104, 165, 39,  4,   73,  56, 183, 86,
                                     20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
  const BalanceSizes s{.layers = 2, .experts = 12, .replicas = 16, .groups = 4, .nodes = 2, .gpus = 8};
  EXPECT_EQ(rebalance_experts(weight, s).phy2log,
            (std::vector<int32_t>{5, 6,  5, 7, 8, 4,  3, 4, 10, 9, 10, 2, 0, 1, 11, 1,
                                  7, 10, 6, 8, 6, 11, 8, 9, 2,  4, 5,  1, 5, 0, 3,  1}));
  expect_reference(weight, s);
}

TEST(Balance, EqualsItsDefinitionOnRandomCases) {
  for (int i = 0; i < 1500; ++i) {
    RandomCase c;
    SCOPED_TRACE(c.text());
    expect_reference(c.weight, c.sizes);
    if (HasFatalFailure()) return;
  }
}

TEST(Balance, TablesListEveryReplicaOnce) {
  const BalanceSizes s{.layers = 1, .experts = 3, .replicas = 6, .gpus = 2};
  const ReplicaPlacement p = placement_of(s, {2, 0, 2, 1, 2, 0});
  EXPECT_EQ(p.logcnt, (std::vector<int32_t>{2, 1, 3}));
  EXPECT_EQ(p.most_copies, 3);
  EXPECT_EQ(p.log2phy, (std::vector<int32_t>{1, 5, -1, 3, -1, -1, 0, 2, 4}));
}

TEST(Balance, MeasuresAPlacement) {
  const BalanceSizes s{.layers = 2, .experts = 3, .replicas = 6, .gpus = 2};
  const std::vector<float> weight = {4, 3, 9, 0, 0, 0};
  const ReplicaPlacement p = placement_of(s, {2, 0, 2, 1, 2, 0, 0, 1, 2, 2, 1, 0});
  // GPU 0 has 3 + 2 + 3, GPU 1 has 3 + 3 + 2; the second layer has no load.
  EXPECT_EQ(max_over_mean(weight, p), (std::vector<double>{1, 1}));
  EXPECT_EQ(max_over_mean(std::vector<float>{4, 3, 3, 0, 0, 1}, p), (std::vector<double>{6.0 / 5, 1}));
  EXPECT_EQ(duplicates(p), 1);
  const std::vector<int32_t> before = {0, 1, 1, 1, 2, 0, 0, 1, 2, 2, 2, 2};
  EXPECT_EQ(moved(before, p), 1 + 2);  // 2 to GPU 0; 1 and 0 to GPU 1 of the second layer
  EXPECT_EQ(moved(p.phy2log, p), 0);
}

// The least possible largest load, by looking at every way to fill the slots.
double least_load(const std::vector<float>& weight, int gpus, int slots) {
  const int experts = static_cast<int>(weight.size());
  std::vector<int> at(static_cast<size_t>(gpus * slots), 0);
  double least = std::numeric_limits<double>::infinity();
  while (true) {
    std::vector<int> copies(weight.size(), 0);
    for (const int e : at) ++copies[static_cast<size_t>(e)];
    if (std::ranges::min(copies) > 0) {
      double most = 0;
      for (int g = 0; g < gpus; ++g) {
        double load = 0;
        for (int i = g * slots; i < (g + 1) * slots; ++i) {
          const auto e = static_cast<size_t>(at[static_cast<size_t>(i)]);
          load += double{weight[e]} / copies[e];
        }
        most = std::max(most, load);
      }
      least = std::min(least, most);
    }
    size_t i = 0;
    while (i < at.size() && ++at[i] == experts) at[i++] = 0;
    if (i == at.size()) return least;
  }
}

TEST(Balance, NoPlacementIsBelowTheBound) {
  struct Shape {
    int experts;
    int gpus;
    int slots;
  };
  int reached = 0;
  int cases = 0;
  for (const Shape& shape :
       {Shape{2, 2, 2}, {3, 2, 2}, {4, 3, 2}, {4, 2, 3}, {5, 3, 2}, {3, 4, 1}, {5, 2, 3}}) {
    for (int i = 0; i < 12; ++i, ++cases) {
      const std::vector<float> weight = random_loads(shape.experts);
      const BalanceSizes s{
          .experts = shape.experts, .replicas = shape.gpus * shape.slots, .gpus = shape.gpus};
      const double least = least_load(weight, shape.gpus, shape.slots);
      const double bound = layer_bound(weight, s);
      ASSERT_LE(bound, least * (1 + 1e-12)) << s.experts << " on " << s.gpus;
      reached += bound >= least * (1 - 1e-9);
    }
  }
  EXPECT_GT(reached, cases / 4);
}

TEST(Balance, BadInputIsRefused) {
  const BalanceSizes good{.layers = 2, .experts = 12, .replicas = 16, .groups = 4, .nodes = 2, .gpus = 8};
  const std::vector<float> weight(24, 1);
  const auto refused = [&](BalanceSizes s, const char* name) {
    try {
      rebalance_experts(
          std::vector<float>(static_cast<size_t>(std::max<int64_t>(0, s.layers * s.experts)), 1), s);
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(name), std::string::npos) << e.what();
      return;
    }
    FAIL() << name;
  };
  const auto with = [&](int64_t BalanceSizes::*size, int64_t value) {
    BalanceSizes s = good;
    s.*size = value;
    return s;
  };
  for (const int64_t wrong : {int64_t{0}, int64_t{-1}, int64_t{65'537}}) {
    refused(with(&BalanceSizes::experts, wrong), "experts");
    refused(with(&BalanceSizes::replicas, wrong), "replicas");
    refused(with(&BalanceSizes::groups, wrong), "groups");
    refused(with(&BalanceSizes::nodes, wrong), "nodes");
    refused(with(&BalanceSizes::gpus, wrong), "gpus");
  }
  refused(with(&BalanceSizes::layers, 0), "layers");
  refused(with(&BalanceSizes::replicas, 8), "at least 12");
  refused(with(&BalanceSizes::gpus, 6), "gpus 6 does not divide replicas 16");
  refused(with(&BalanceSizes::groups, 10), "groups 10 does not divide experts 12");
  BalanceSizes odd = with(&BalanceSizes::nodes, 3);
  odd.groups = 3;
  refused(odd, "nodes 3 does not divide gpus 8");
  odd.groups = 4;  // 3 nodes do not divide 4 groups: as one node
  EXPECT_NO_THROW(rebalance_experts(weight, odd));
  EXPECT_THROW(rebalance_experts(std::span(weight).first(23), good), Error);
}

TEST(Balance, BadLoadsAreRefusedByLayerAndExpert) {
  const BalanceSizes s{.layers = 2, .experts = 12, .replicas = 16, .gpus = 8};
  for (const float bad : {-1.0F, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    std::vector<float> weight(24, 1);
    weight[12 + 7] = bad;
    try {
      rebalance_experts(weight, s);
      FAIL();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("layer 1: the load of expert 7"), std::string::npos) << e.what();
    }
  }
  EXPECT_THROW(rebalance_experts(std::vector<float>(24, 3e38F), s), Error);
  EXPECT_THROW(placement_of(s, std::vector<int32_t>(31, 0)), Error);
  std::vector<int32_t> slots(32, 0);
  EXPECT_THROW(placement_of(s, slots), Error);  // expert 1 has no replica
  slots[5] = 12;
  EXPECT_THROW(placement_of(s, slots), Error);
}

}  // namespace
}  // namespace phalanx::ep
