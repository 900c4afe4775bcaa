// Dispatch and combine on random ranks, experts, tokens and dtypes, against a slow account of every row, bit
// for bit. Every rank knows what all ranks bring: it is drawn from the case's seed.
#include "tests/ep/random_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "phalanx/comm/transport/fake.h"
#include "phalanx/comm/transport/process.h"
#include "phalanx/ep/buffer.h"

namespace phalanx::ep {
namespace {

// T tokens of a rank, D width, K top-k, R received rows

struct Sizes {
  std::vector<int64_t> slots;    // of each rank, some none
  std::vector<int32_t> phy2log;  // the expert of each slot; empty: every slot is an expert
  std::vector<int64_t> tokens;   // of each rank, some none
  int64_t experts = 1;
  int64_t width = 1;
  int64_t top_k = 1;
  int64_t favoured = 1;  // experts below it are chosen more often
  DType dtype = DType::f32;
  int64_t biases = 0;
  PairOrder order = PairOrder::by_rank;
};

Sizes random_sizes(int ranks, std::mt19937& random) {
  const auto up_to = [&](uint32_t n) { return static_cast<int64_t>(random() % n); };
  Sizes s;
  int64_t slots = 0;
  for (int r = 0; r < ranks; ++r) {
    s.slots.push_back(up_to(4) == 0 ? 0 : up_to(6));
    s.tokens.push_back(up_to(4) == 0 ? 0 : up_to(14));
    slots += s.slots.back();
  }
  if (slots == 0) s.slots.back() = slots = 1;
  s.experts = slots;
  if (up_to(2) == 0) {
    s.experts = 1 + up_to(static_cast<uint32_t>(slots));
    for (int64_t p = 0; p < slots; ++p) {
      s.phy2log.push_back(static_cast<int32_t>(p < s.experts ? p : up_to(static_cast<uint32_t>(s.experts))));
    }
    std::ranges::shuffle(s.phy2log, random);
  }
  s.width = 1 + up_to(up_to(3) == 0 ? 300 : 20);
  s.top_k = 1 + up_to(up_to(3) == 0 ? 32 : 6);
  s.favoured = 1 + up_to(static_cast<uint32_t>(s.experts));
  constexpr std::array kDtypes = {DType::f64, DType::f32, DType::bf16, DType::f16};
  s.dtype = kDtypes[static_cast<size_t>(up_to(4))];
  s.biases = std::max<int64_t>(0, up_to(5) - 2);
  s.order = up_to(2) == 0 ? PairOrder::by_rank : PairOrder::by_slot;
  return s;
}

Tensor random_floats(const Shape& shape, DType dtype, std::mt19937& random) {
  const Tensor t = Tensor::empty(shape, dtype);
  std::uniform_real_distribution<float> value(-4, 4);
  for (int64_t i = 0; i < t.numel(); ++i) {
    const float v = value(random);
    if (dtype == DType::f64) t.data<double>()[i] = v;
    if (dtype == DType::f32) t.data<float>()[i] = v;
    if (dtype == DType::bf16) t.data<bf16>()[i] = bf16::from(v);
    if (dtype == DType::f16) t.data<f16>()[i] = f16::from(v);
  }
  return t;
}

// Adds as wide as sums are made, and narrows once.
class Sum {
 public:
  explicit Sum(DType dtype) : dtype_(dtype) {}
  void add(const std::byte* at) {
    double v = 0;
    if (dtype_ == DType::f64) std::memcpy(&v, at, sizeof v);
    if (dtype_ == DType::f32) v = *reinterpret_cast<const float*>(at);
    if (dtype_ == DType::bf16) v = reinterpret_cast<const bf16*>(at)->to_float();
    if (dtype_ == DType::f16) v = reinterpret_cast<const f16*>(at)->to_float();
    sum_ = dtype_ == DType::f64 ? sum_ + v : static_cast<float>(sum_) + static_cast<float>(v);
  }
  bool equals(const std::byte* at) const {
    if (dtype_ == DType::f64) return *reinterpret_cast<const double*>(at) == sum_;
    const auto narrow = static_cast<float>(sum_);
    if (dtype_ == DType::f32) return *reinterpret_cast<const float*>(at) == narrow;
    const float got = dtype_ == DType::bf16 ? reinterpret_cast<const bf16*>(at)->to_float()
                                            : reinterpret_cast<const f16*>(at)->to_float();
    return got == (dtype_ == DType::bf16 ? bf16::from(narrow).to_float() : f16::from(narrow).to_float());
  }

 private:
  DType dtype_;
  double sum_ = 0;
};

// A row that a rank receives.
struct Source {
  int rank;
  int64_t token;
  friend bool operator==(const Source&, const Source&) = default;
};

class RandomCase {
 public:
  RandomCase(int ranks, unsigned seed) : random_(seed), sizes_(random_sizes(ranks, random_)) {
    for (int r = 0; r < ranks; ++r) {
      const int64_t n = sizes_.tokens[static_cast<size_t>(r)];
      Tokens t = {random_floats({n, sizes_.width}, sizes_.dtype, random_),
                  Tensor::empty({n, sizes_.top_k}, DType::i64),
                  random_floats({n, sizes_.top_k}, DType::f32, random_)};
      std::vector<Tensor>& biases = biases_.emplace_back();
      for (int64_t i = 0; i < sizes_.biases; ++i) {
        biases.push_back(random_floats({n, sizes_.width}, sizes_.dtype, random_));
      }
      for (int64_t& e : t.topk_idx_TK.span<int64_t>()) e = choose();
      tokens_.push_back(std::move(t));
    }
    choose_slots();
    for (int r = 0; r < ranks; ++r) {
      sources_.push_back(received(r));
      const auto rows = static_cast<int64_t>(sources_.back().size());
      y_.push_back(random_floats({rows, sizes_.width}, sizes_.dtype, random_));
    }
  }

  // All that one rank sees.
  void check(Group& world) const {
    const auto me = static_cast<size_t>(world.rank());
    Buffer buffer(world, ExpertMap(sizes_.slots));
    if (!sizes_.phy2log.empty()) buffer.set_replicas(std::make_shared<ReplicaMap>(replica_map()));
    const Tokens& mine = tokens_[me];
    DispatchOptions options;
    options.order = sizes_.order;
    const Dispatched in = run(buffer.dispatch(mine, options));
    ASSERT_EQ(in.x_RD.count(), std::ssize(sources_[me]));
    ASSERT_NO_FATAL_FAILURE(check_rows(world.rank(), in));
    const Rows again = run(buffer.dispatch(mine.x_TD, in.handle));
    ASSERT_EQ(std::memcmp(again.data.raw(), in.x_RD.data.raw(), in.x_RD.live_bytes()), 0);
    CombineOptions combine = {.weights = in.weights_RK};
    combine.bias.assign(biases_[me].begin(), biases_[me].end());
    const Combined out = run(buffer.combine(all_rows(y_[me]), in.handle, std::move(combine)));
    ASSERT_NO_FATAL_FAILURE(check_sums(world.rank(), out));
  }

 private:
  int64_t choose() {
    if (random_() % 5 == 0) return -1;
    return static_cast<int64_t>(random_() %
                                static_cast<uint64_t>(random_() % 2 == 0 ? sizes_.favoured : sizes_.experts));
  }

  ReplicaMap replica_map() const {
    return ReplicaMap(sizes_.phy2log, ExpertMap(sizes_.slots), sizes_.experts);
  }

  // Which replica a token goes to is what replica_map_test.cc checks.
  void choose_slots() {
    const Tensor choices_RE = Tensor::empty({std::ssize(tokens_), sizes_.experts}, DType::i64);
    for (int64_t r = 0; r < std::ssize(tokens_); ++r) {
      const Tensor counts = count_choices(tokens_[static_cast<size_t>(r)].topk_idx_TK, sizes_.experts);
      std::ranges::copy(counts.span<int64_t>(), choices_RE.slice(r, r + 1).data<int64_t>());
    }
    for (int r = 0; r < std::ssize(tokens_); ++r) {
      const Tensor& idx = tokens_[static_cast<size_t>(r)].topk_idx_TK;
      slots_.push_back(sizes_.phy2log.empty() ? idx : choose_replicas(idx, replica_map(), choices_RE, r));
    }
  }

  // The slot's number on `rank`, or −1.
  int64_t local(int64_t slot, int rank) const {
    for (int r = 0; r < rank; ++r) slot -= slot < 0 ? 0 : sizes_.slots[static_cast<size_t>(r)];
    return slot >= 0 && slot < sizes_.slots[static_cast<size_t>(rank)] ? slot : -1;
  }

  std::vector<Source> received(int rank) const {
    std::vector<Source> rows;
    for (int s = 0; s < std::ssize(tokens_); ++s) {
      const Tensor& idx = slots_[static_cast<size_t>(s)];
      for (int64_t t = 0; t < idx.rows(); ++t) {
        const auto slots = idx.slice(t, t + 1).span<int64_t>();
        if (std::ranges::any_of(slots, [&](int64_t e) { return local(e, rank) >= 0; }))
          rows.push_back({s, t});
      }
    }
    return rows;
  }

  void check_rows(int rank, const Dispatched& in) const {
    for (int64_t i = 0; i < in.x_RD.count(); ++i) {
      const Source& source = sources_[static_cast<size_t>(rank)][static_cast<size_t>(i)];
      const Tokens& from = tokens_[static_cast<size_t>(source.rank)];
      const Tensor x = from.x_TD.slice(source.token, source.token + 1);
      ASSERT_EQ(std::memcmp(in.x_RD.data.slice(i, i + 1).raw(), x.raw(), x.bytes()), 0) << "row " << i;
      for (int64_t k = 0; k < sizes_.top_k; ++k) {
        const int64_t there = source.token * sizes_.top_k + k;
        const int64_t e = local(slots_[static_cast<size_t>(source.rank)].data<int64_t>()[there], rank);
        ASSERT_EQ(in.topk_idx_RK.data.data<int64_t>()[i * sizes_.top_k + k], e);
        ASSERT_EQ(in.weights_RK.data<float>()[i * sizes_.top_k + k],
                  e < 0 ? 0 : from.weights_TK.data<float>()[there]);
      }
    }
  }

  void check_sums(int rank, const Combined& out) const {
    const Tokens& mine = tokens_[static_cast<size_t>(rank)];
    for (int64_t t = 0; t < mine.x_TD.rows(); ++t) {
      for (int64_t d = 0; d < sizes_.width; ++d) {
        Sum sum(sizes_.dtype);
        for (const Tensor& bias : biases_[static_cast<size_t>(rank)]) sum.add(element(bias, t, d));
        for (const size_t r : ranks_in_order(slots_[static_cast<size_t>(rank)], t)) {
          const auto row = std::ranges::find(sources_[r], Source{rank, t});
          sum.add(element(y_[r], row - sources_[r].begin(), d));
        }
        ASSERT_TRUE(sum.equals(element(out.x_TD, t, d))) << "token " << t << ", element " << d;
      }
      for (int64_t k = 0; k < sizes_.top_k; ++k) {
        const int64_t at = t * sizes_.top_k + k;
        const bool chosen = mine.topk_idx_TK.data<int64_t>()[at] >= 0;
        ASSERT_EQ(out.weights_TK.data<float>()[at], chosen ? mine.weights_TK.data<float>()[at] : 0);
      }
    }
  }

  // Those with a slot of the token, in the order in which combine sums their rows.
  std::vector<size_t> ranks_in_order(const Tensor& slots_TK, int64_t token) const {
    std::vector<std::pair<int64_t, size_t>> found;  // what decides, and the rank
    for (size_t r = 0; r < sources_.size(); ++r) {
      int64_t last = -1;
      const auto slots = slots_TK.slice(token, token + 1).span<int64_t>();
      for (size_t k = 0; k < slots.size(); ++k) {
        if (local(slots[k], static_cast<int>(r)) >= 0) last = static_cast<int64_t>(k);
      }
      if (last >= 0) found.emplace_back(sizes_.order == PairOrder::by_slot ? last : 0, r);
    }
    std::ranges::sort(found);
    std::vector<size_t> out;
    for (const auto& [decides, r] : found) out.push_back(r);
    return out;
  }

  static const std::byte* element(const Tensor& t, int64_t row, int64_t column) {
    return t.raw() + static_cast<size_t>(row * t.dim(1) + column) * dtype_size(t.dtype());
  }

  std::mt19937 random_;
  Sizes sizes_;
  std::vector<Tokens> tokens_;
  std::vector<Tensor> slots_;                 // [T, K], which the tokens of each rank go to
  std::vector<std::vector<Tensor>> biases_;   // of each rank
  std::vector<std::vector<Source>> sources_;  // of each rank
  std::vector<Tensor> y_;                     // what each rank makes of its rows
};

}  // namespace

void check_cases(Group& world, unsigned seed, int first, int last) {
  for (int i = first; i < last; ++i) {
    SCOPED_TRACE(i);
    ASSERT_NO_FATAL_FAILURE(RandomCase(world.size(), seed + static_cast<unsigned>(i)).check(world));
  }
}

void check_cases(int cases, int cases_a_world, const RunRanks& run_ranks) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (int first = 0; first < cases; first += cases_a_world) {
    run_ranks(1 + first / cases_a_world % 16,
              [&](Group& world) { check_cases(world, seed, first, first + cases_a_world); });
  }
}

RunRanks on_threads(const WrapTransport& wrap) {
  return [wrap](int ranks, const RankBody& body) { run_thread_ranks({.ranks = ranks}, wrap, body); };
}

RunRanks on_processes() {
  return [](int ranks, const RankBody& body) {
    run_process_ranks({.ranks = ranks}, [&](Group& world) {
      ASSERT_TRUE(world.shares_memory());
      body(world);
      if (testing::Test::HasFailure()) throw Error("what rank {} has printed", world.rank());
    });
  };
}

WrapTransport directly() {
  return [](std::unique_ptr<Transport> t) { return t; };
}

WrapTransport by_messages() {
  return [](std::unique_ptr<Transport> t) {
    return fake_transport(std::move(t), {.max_delay = std::chrono::microseconds(20)});
  };
}

}  // namespace phalanx::ep
