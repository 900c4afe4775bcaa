#include "tests/ep/low_latency_cases.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <thread>

#include "phalanx/ep/low_latency.h"

namespace phalanx::ep {
namespace {

// Everything that a rank brings is a function of these, so that every rank knows all.
struct World {
  std::vector<int64_t> experts;  // of each rank, some none
  int64_t all_experts = 0;
  int64_t max_tokens = 1;
  int64_t width = 1;
  int64_t top_k = 1;
  DType dtype = DType::f32;
  std::optional<ScaleFormat> fp8;
  unsigned seed = 0;
};

World random_world(int ranks, unsigned seed) {
  std::mt19937 random(seed);
  const auto up_to = [&](uint32_t n) { return static_cast<int64_t>(random() % n); };
  World w;
  for (int r = 0; r < ranks; ++r) w.experts.push_back(up_to(4) == 0 ? 0 : up_to(5));
  if (std::ranges::max(w.experts) == 0) w.experts.back() = 1 + up_to(3);
  for (const int64_t n : w.experts) w.all_experts += n;
  w.max_tokens = 1 + up_to(up_to(3) == 0 ? 150 : 12);
  w.width = 1 + up_to(up_to(3) == 0 ? 300 : 20);
  w.top_k = 1 + up_to(up_to(2) == 0 ? 16 : 4);
  constexpr std::array kDtypes = {DType::f64, DType::f32, DType::bf16, DType::f16};
  w.dtype = kDtypes[static_cast<size_t>(up_to(4))];
  if (w.dtype != DType::f64 && up_to(2) == 0) w.fp8 = up_to(2) == 0 ? ScaleFormat::f32 : ScaleFormat::ue8m0;
  w.seed = seed;
  return w;
}

uint64_t mix(uint64_t h) {
  h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
  h = (h ^ h >> 27) * 0x94d049bb133111ebu;
  return h ^ h >> 31;
}

template <class... N>
uint64_t hash(const World& w, N... numbers) {
  uint64_t h = w.seed;
  ((h = mix(h + 0x9e3779b97f4a7c15u + static_cast<uint64_t>(numbers))), ...);
  return h;
}

// Between −4 and 4, with few digits of its own so that rounding matters in sums alone.
double value(uint64_t h) { return static_cast<double>(h >> 40) * 0x1p-21 - 4; }

void put(std::byte* at, DType dtype, double v) {
  if (dtype == DType::f64) std::memcpy(at, &v, sizeof v);
  const auto narrow = static_cast<float>(v);
  if (dtype == DType::f32) std::memcpy(at, &narrow, sizeof narrow);
  if (dtype == DType::bf16) *reinterpret_cast<bf16*>(at) = bf16::from(narrow);
  if (dtype == DType::f16) *reinterpret_cast<f16*>(at) = f16::from(narrow);
}

// `v` as it is when it has been stored.
double stored(DType dtype, double v) {
  if (dtype == DType::f64) return v;
  const auto narrow = static_cast<float>(v);
  if (dtype == DType::bf16) return bf16::from(narrow).to_float();
  return dtype == DType::f16 ? f16::from(narrow).to_float() : narrow;
}

double product_then_sum(DType dtype, double sum, double weight, double v) {
  if (dtype == DType::f64) return sum + weight * v;
  return static_cast<float>(sum) + static_cast<float>(weight) * static_cast<float>(v);
}

// What everyone brings to dispatch `n`, and makes of it.
class Round {
 public:
  Round(const World& w, int64_t n) : w_(w), n_(n) {}

  int64_t tokens(int rank) const {
    const uint64_t h = hash(w_, n_, rank, 1);
    return h % 5 == 0 ? 0 : static_cast<int64_t>(h >> 8) % (w_.max_tokens + 1);
  }
  int64_t choice(int rank, int64_t t, int64_t k) const {
    const uint64_t h = hash(w_, n_, rank, t, k, 2);
    if (h % 5 == 0) return -1;
    const int64_t favoured = h % 3 == 0 ? (w_.all_experts + 1) / 2 : w_.all_experts;
    return static_cast<int64_t>(h >> 8) % favoured;
  }
  double weight(int rank, int64_t t, int64_t k) const {
    const double v = value(hash(w_, n_, rank, t, k, 3));
    return w_.dtype == DType::f64 ? v : static_cast<float>(v);
  }
  double x(int rank, int64_t t, int64_t i) const { return value(hash(w_, n_, rank, t, i, 4)); }
  double y(int64_t expert, int rank, int64_t t, int64_t i) const {
    return value(hash(w_, n_, expert, rank, t, i, 5));
  }
  bool chose(int rank, int64_t t, int64_t expert) const {
    for (int64_t k = 0; k < w_.top_k; ++k) {
      if (choice(rank, t, k) == expert) return true;
    }
    return false;
  }

  Tensor x_of(int rank) const {
    const Tensor out = Tensor::empty({tokens(rank), w_.width}, w_.dtype);
    fill(out, [&](int64_t t, int64_t i) { return x(rank, t, i); });
    return out;
  }
  Tensor choices_of(int rank) const {
    const Tensor out = Tensor::empty({tokens(rank), w_.top_k}, DType::i64);
    for (int64_t j = 0; j < out.numel(); ++j) {
      out.data<int64_t>()[j] = choice(rank, j / w_.top_k, j % w_.top_k);
    }
    return out;
  }
  Tensor weights_of(int rank) const {
    const Tensor out =
        Tensor::empty({tokens(rank), w_.top_k}, w_.dtype == DType::f64 ? DType::f64 : DType::f32);
    fill(out, [&](int64_t t, int64_t k) { return weight(rank, t, k); });
    return out;
  }

  // What one rank has received: everything in its place. Experts' outputs come into `y`, elsewhere it is NaN.
  void check_rows(int rank, const LowLatencyDispatched& in, std::span<const int32_t> stats,
                  const Tensor& y_LMH);
  void check_sums(int rank, const Tensor& out) const;

 private:
  template <class F>
  static void fill(const Tensor& t, F value_at) {
    for (int64_t j = 0; j < t.numel(); ++j) {
      put(t.raw() + static_cast<size_t>(j) * dtype_size(t.dtype()), t.dtype(),
          value_at(j / t.dim(1), j % t.dim(1)));
    }
  }
  // The row at that place among all slots.
  void check_row(const LowLatencyDispatched& in, int64_t at, int source, int64_t t) const {
    const Tensor expected = Tensor::empty({1, w_.width}, w_.dtype);
    fill(expected, [&](int64_t, int64_t i) { return x(source, t, i); });
    const auto same = [&](const Tensor& got_LM, const Tensor& want) {
      const std::byte* const row = got_LM.raw() + static_cast<size_t>(at) * want.bytes();
      PHX_CHECK(std::memcmp(row, want.raw(), want.bytes()) == 0, "row of token {} of rank {}", t, source);
    };
    PHX_CHECK(in.scales_LMS.defined() == w_.fp8.has_value(), "scales");
    if (!w_.fp8) return same(in.recv_LMH, expected);
    const Quantized narrow = quantize(expected, *w_.fp8);
    same(in.recv_LMH, narrow.q_TD);
    same(in.scales_LMS, narrow.scales_TS);
  }

  const World& w_;
  int64_t n_;
};

void Round::check_rows(int rank, const LowLatencyDispatched& in, std::span<const int32_t> stats,
                       const Tensor& y_LMH) {
  const auto ranks = static_cast<int>(w_.experts.size());
  const int64_t slots = ranks * w_.max_tokens;
  const size_t item = dtype_size(w_.dtype);
  const int64_t first = std::accumulate(w_.experts.begin(), w_.experts.begin() + rank, int64_t{0});
  std::memset(y_LMH.raw(), 0xff, y_LMH.bytes());
  PHX_CHECK(in.recv_LMH.shape() == y_LMH.shape(), "shape {}", in.recv_LMH.shape());
  for (int64_t e = 0; e < in.count_L.rows(); ++e) {
    int64_t row = 0;
    for (int s = 0; s < ranks; ++s) {
      const int64_t begin = row;
      for (int64_t t = 0; t < tokens(s); ++t) {
        if (!chose(s, t, first + e)) continue;
        const size_t at = static_cast<size_t>((e * slots + row) * w_.width) * item;
        check_row(in, e * slots + row, s, t);
        PHX_CHECK(in.handle.source_LM.data<int32_t>()[e * slots + row] == t, "source of row {}", row);
        for (int64_t i = 0; i < w_.width; ++i) {
          put(y_LMH.raw() + at + static_cast<size_t>(i) * item, w_.dtype, y(first + e, s, t, i));
        }
        ++row;
      }
      const int64_t range = in.handle.range_LR.data<int64_t>()[e * ranks + s];
      PHX_CHECK(range == (begin << 32 | (row - begin)), "range {} of expert {}, rank {}", range, e, s);
    }
    PHX_CHECK(in.count_L.data<int32_t>()[e] == row, "{} rows of expert {}", row, e);
    PHX_CHECK(stats[static_cast<size_t>(e)] == row, "{} rows of expert {} in stats", row, e);
  }
}

void Round::check_sums(int rank, const Tensor& out) const {
  PHX_CHECK(out.shape() == Shape({tokens(rank), w_.width}), "shape {}", out.shape());
  const size_t item = dtype_size(w_.dtype);
  for (int64_t t = 0; t < out.rows(); ++t) {
    for (int64_t i = 0; i < w_.width; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < w_.top_k; ++k) {
        const int64_t e = choice(rank, t, k);
        if (e < 0) continue;
        sum = product_then_sum(w_.dtype, sum, weight(rank, t, k), stored(w_.dtype, y(e, rank, t, i)));
      }
      std::array<std::byte, 8> expected{};
      put(expected.data(), w_.dtype, sum);
      const std::byte* const got = out.raw() + static_cast<size_t>(t * w_.width + i) * item;
      PHX_CHECK(std::memcmp(got, expected.data(), item) == 0, "sum {} of token {}", i, t);
    }
  }
}

// One rank's run through the rounds.
class Run {
 public:
  Run(Group& world, const World& w)
      : rank_(world.rank()),
        w_(w),
        buffer_(world, ExpertMap(w.experts),
                {.max_tokens = w.max_tokens, .width = w.width, .dtype = w.dtype, .fp8 = w.fp8}),
        random_(w.seed + 77 * static_cast<unsigned>(rank_)) {}

  void dispatch(int64_t n) {
    if (live_.contains(n - 2)) return_sums(n - 2);
    const Tensor x = Round(w_, n).x_of(rank_);
    const Tensor idx = Round(w_, n).choices_of(rank_);
    Live& l = live_[n];
    l.stats = Tensor::zeros({w_.experts[static_cast<size_t>(rank_)]}, DType::i32);
    l.in.emplace(buffer_.dispatch(x, idx, {.rows_L = l.stats}));
    std::memset(x.raw(), 0x7f, x.bytes());  // they may be changed now
    std::memset(idx.raw(), 0x7f, idx.bytes());
    dally();
  }
  void combine(int64_t n) {
    receive(n);
    Live& l = live_.at(n);
    l.sums.emplace(
        buffer_.combine(l.y, Round(w_, n).choices_of(rank_), Round(w_, n).weights_of(rank_), l.in->handle));
    dally();
  }
  void finish() {
    while (!live_.empty()) return_sums(live_.rbegin()->first);
  }

 private:
  struct Live {
    Tensor stats;
    Tensor y;  // once received
    std::optional<LowLatencyDispatched> in;
    std::optional<Hook> sums;
  };

  // Some hooks, and some time.
  void dally() {
    if (random_() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random_() % 300));
    for (auto& [n, l] : std::map<int64_t, bool>(names())) {
      if (random_() % 2 == 0) continue;
      if (l) {
        return_sums(n);
      } else {
        receive(n);
      }
    }
  }
  std::map<int64_t, bool> names() const {
    std::map<int64_t, bool> out;
    for (const auto& [n, l] : live_) out[n] = l.sums.has_value();
    return out;
  }
  void receive(int64_t n) {
    Live& l = live_.at(n);
    if (l.y.defined()) return;
    l.in->hook.wait();
    l.y = random_() % 2 == 0 ? buffer_.combine_buffer(l.in->handle)
                             : Tensor::empty(l.in->recv_LMH.shape(), w_.dtype);
    Round(w_, n).check_rows(rank_, *l.in, l.stats.span<int32_t>(), l.y);
  }
  void return_sums(int64_t n) {
    Round(w_, n).check_sums(rank_, live_.at(n).sums->wait());
    live_.erase(n);
  }

  int rank_;
  const World& w_;
  LowLatencyBuffer buffer_;
  std::mt19937 random_;
  std::map<int64_t, Live> live_;
};

}  // namespace

void check_low_latency(Group& world, unsigned seed) {
  const World w = random_world(world.size(), seed);
  std::mt19937 random(seed + 1);
  Run run(world, w);
  std::vector<int64_t> live;  // dispatched, not combined
  const auto combine = [&](size_t which) {
    run.combine(live[which]);
    live.erase(live.begin() + static_cast<std::ptrdiff_t>(which));
  };
  for (int64_t n = 0; n < 6; ++n) {
    if (!live.empty() && live.front() == n - 2) combine(0);
    run.dispatch(n);
    live.push_back(n);
    while (!live.empty() && random() % 3 == 0) combine(random() % live.size());  // the later one may go first
  }
  for (const int64_t n : live) run.combine(n);
  run.finish();
}

void check_low_latency(int worlds, const WrapTransport& wrap) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (int i = 0; i < worlds; ++i) {
    SCOPED_TRACE(i);
    const auto body = [&](Group& world) { check_low_latency(world, seed + static_cast<unsigned>(i)); };
    ASSERT_NO_THROW(run_thread_ranks({.ranks = 1 + i % 8}, wrap, body));
  }
}

}  // namespace phalanx::ep
