// Dispatch, cached dispatch and combine with damaged arguments, and a slow account of those that work: all
// ranks are threads, which see what the others have brought.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "phalanx/base/error.h"
#include "phalanx/comm/failure.h"
#include "phalanx/ep/buffer.h"
#include "tests/ep/argument_fuzz.h"

namespace phalanx::ep {
namespace {

// T tokens of a rank, D width, K top-k, R received rows

constexpr int kRounds = 6;

// What a rank brings to a round.
struct Brought {
  Tokens tokens;
  DispatchOptions options;
  Tensor again_TD;  // for the cached dispatch
  Tensor y_RD;      // what its experts make of the rows
  std::string outcome;
};
using Round = std::vector<Brought>;  // [ranks]

struct World {
  World(int ranks, bool memory_is_shared, Random random) {
    for (int r = 0; r < ranks; ++r) experts.push_back(random.below(4));
    experts[static_cast<size_t>(random.below(ranks))] += 1;
    top_k = 1 + random.below(4);
    width = 1 + random.below(9);
    constexpr std::array kDtypes = {DType::f64, DType::f32, DType::bf16, DType::u8};
    dtype = random.of(kDtypes);
    weighted = random.one_in(2);
    scaled = random.one_in(3);
    options.expand = random.one_in(3);
    options.sources = random.one_in(2);
    options.rows_later = random.one_in(4);
    options.expert_alignment = 1 + random.below(3);
    buffer.checked = random.one_in(2);
    if (memory_is_shared && random.one_in(3)) {
      const Way way = random.one_in(2) ? Way::two_level : Way::by_size;
      buffer = {.way = way, .ranks_of_node = ranks % 2 == 0 ? 2 : 1};
    }
    if (buffer.ranks_of_node == 0 && random.one_in(3)) {
      options.order = random.one_in(2) ? PairOrder::by_slot : PairOrder::every_slot;
    }
  }
  std::vector<int64_t> experts;
  int64_t top_k, width;
  DType dtype;
  bool weighted, scaled;
  DispatchOptions options;
  BufferOptions buffer;
};

Brought right(const World& w, Random& random) {
  const int64_t n = random.below(6);
  int64_t experts = 0;
  for (const int64_t e : w.experts) experts += e;
  Brought b = {.tokens = {random.tensor({n, w.width}, w.dtype), Tensor::empty({n, w.top_k}, DType::i64)},
               .options = w.options};
  const auto idx = b.tokens.topk_idx_TK.span<int64_t>();
  for (size_t i = 0; i < idx.size(); ++i) {
    const size_t first = i - i % static_cast<size_t>(w.top_k);
    const int64_t e = random.below(experts);
    const bool twice =
        std::ranges::find(idx.subspan(first, i - first), e) != idx.begin() + first + (i - first);
    idx[i] = twice || random.one_in(5) ? -1 : e;
  }
  if (w.weighted) b.tokens.weights_TK = random.tensor({n, w.top_k}, DType::f32);
  if (w.scaled) b.tokens.scales_TS = random.tensor({n, 2}, DType::f32);
  if (!w.options.expand && random.one_in(3)) b.options.worst_rows = 64;
  return b;
}

void damage_values(Tokens& t, Random& random) {
  const Tensor& idx = t.topk_idx_TK;
  if (idx.defined() && idx.dtype() == DType::i64 && idx.numel() > 0) {
    const auto e = idx.span<int64_t>();
    e[static_cast<size_t>(random.below(idx.numel()))] =
        random.one_in(2) ? random.extreme() : e[static_cast<size_t>(random.below(idx.numel()))];
  }
  const Tensor& weights = t.weights_TK;
  if (!weights.defined() || weights.dtype() != DType::f32 || weights.numel() == 0 || random.one_in(2)) return;
  using Limits = std::numeric_limits<float>;
  constexpr std::array kNone = {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(), Limits::max()};
  weights.data<float>()[random.below(weights.numel())] = random.of(kNone);
}

void damage_options(DispatchOptions& o, Random& random) {
  const int64_t how = random.below(6);
  if (how == 5) o.rows_later = !o.rows_later;
  if (how == 0) o.expert_alignment = random.extreme();
  if (how == 1) o.worst_rows = random.extreme();
  if (how == 2) o.expand = !o.expand;
  if (how == 3) o.sources = !o.sources;
  constexpr std::array kOrders = {PairOrder::by_rank, PairOrder::by_slot, PairOrder::every_slot};
  if (how == 4) o.order = random.of(kOrders);
}

void damage(Brought& b, Random& random) {
  for (int64_t i = random.below(2); i >= 0; --i) {
    const int64_t how = random.below(7);
    Tokens& t = b.tokens;
    if (how == 0) t.x_TD = random.damaged(t.x_TD);
    if (how == 1) t.topk_idx_TK = random.damaged(t.topk_idx_TK);
    if (how == 2) t.weights_TK = random.damaged(t.weights_TK);
    if (how == 3) t.scales_TS = random.damaged(t.scales_TS);
    if (how == 4) damage_values(t, random);
    if (how > 4) damage_options(b.options, random);
  }
}

// A row that a rank receives: of a token, with a local expert or (by compact rows) all of the token's here.
struct Received {
  size_t rank;
  int64_t token;
  int64_t slot;  // −1: all
};

// The slow account of one rank's round.
class Account {
 public:
  Account(const World& w, const Round& round, size_t me) : w_(w), round_(round), me_(me) {
    const bool every = round[me].options.order == PairOrder::every_slot;
    for (size_t r = 0; r < round.size(); ++r) {
      for (int64_t t = 0; t < round[r].tokens.topk_idx_TK.rows(); ++t) add_rows(r, t, every);
    }
    if (round[me].options.expand) expand();
  }

  void check_rows(const Dispatched& in) const {
    const DispatchOptions& o = round_[me_].options;
    const int64_t rows = std::ssize(rows_);
    hold(in.x_RD.count() == rows, "the number of rows");
    hold(o.expand || in.x_RD.capacity() >= o.worst_rows, "room for the worst");
    for (int64_t i = 0; i < rows; ++i) {
      const Received& from = rows_[static_cast<size_t>(i)];
      if (from.token < 0) continue;  // between experts
      const Brought& b = round_[from.rank];
      check_row(in.x_RD.data, i, b.tokens.x_TD, from.token);
      if (b.tokens.scales_TS.defined()) check_row(in.scales_RS, i, b.tokens.scales_TS, from.token);
      if (!o.expand) check_slots(in, i, from);
      if (o.sources && !o.expand) {
        const int64_t* const s = in.sources_R2.data<int64_t>() + 2 * i;
        hold(s[0] == static_cast<int64_t>(from.rank) && s[1] == from.token, "a source");
      }
    }
  }

  void check_again(const Rows& got) const {
    for (int64_t i = 0; i < std::ssize(rows_); ++i) {
      const Received& from = rows_[static_cast<size_t>(i)];
      if (from.token >= 0) check_row(got.data, i, round_[from.rank].again_TD, from.token);
    }
  }

  // `mine` of Σ over ranks of what they made of this rank's tokens, whose rows are in their accounts.
  static void check_sums(const World& w, const Round& round, size_t me, const Tensor& out, bool quantized) {
    const int64_t width = out.row_size();
    std::vector<double> sum(static_cast<size_t>(out.numel()), 0);
    for (size_t r = 0; r < round.size(); ++r) {
      const Account account(w, round, r);
      for (size_t i = 0; i < account.rows_.size(); ++i) {
        const Received& from = account.rows_[i];
        if (from.rank != me || from.token < 0) continue;
        for (int64_t d = 0; d < width; ++d) {
          sum[static_cast<size_t>(from.token * width + d)] +=
              element(round[r].y_RD, static_cast<int64_t>(i) * width + d);
        }
      }
    }
    for (int64_t i = 0; i < out.numel(); ++i) {
      const double off = std::abs(element(out, i) - sum[static_cast<size_t>(i)]);
      hold(off <= (quantized ? 8 : 0), "a sum");  // 16 values below 9, twice rounded to 1/16 of them
    }
  }

  int64_t rows() const { return std::ssize(rows_); }

 private:
  int64_t first_expert() const {
    int64_t first = 0;
    for (size_t r = 0; r < me_; ++r) first += w_.experts[r];
    return first;
  }
  // Its number here, or −1.
  int64_t local(const Received& from, int64_t k) const {
    const Tensor& idx = round_[from.rank].tokens.topk_idx_TK;
    const int64_t e = idx.data<int64_t>()[from.token * idx.dim(1) + k];
    const bool here = e >= first_expert() && e < first_expert() + w_.experts[me_];
    return here && (from.slot < 0 || from.slot == k) ? e - first_expert() : -1;
  }
  void add_rows(size_t rank, int64_t token, bool every) {
    const int64_t k = round_[rank].tokens.topk_idx_TK.dim(1);
    for (int64_t slot = 0; slot < k; ++slot) {
      if (local({rank, token, -1}, slot) < 0) continue;
      rows_.push_back({rank, token, every ? slot : -1});
      if (!every) return;
    }
  }
  void expand() {
    std::vector<Received> out;
    const auto alignment = static_cast<size_t>(round_[me_].options.expert_alignment);
    for (int64_t e = 0; e < w_.experts[me_]; ++e) {
      for (const Received& from : rows_) {
        const int64_t k = round_[from.rank].tokens.topk_idx_TK.dim(1);
        for (int64_t slot = 0; slot < k; ++slot) {
          if (local(from, slot) == e) out.push_back({from.rank, from.token, slot});
        }
      }
      while (out.size() % alignment != 0) out.push_back({0, -1, -1});
    }
    rows_ = std::move(out);
  }

  static void check_row(const Tensor& got, int64_t i, const Tensor& sent, int64_t t) {
    const size_t bytes = row_bytes(sent);
    hold(row_bytes(got) == bytes && got.dtype() == sent.dtype(), "bytes of a row");
    const auto at = [&](const Tensor& x, int64_t row) { return x.raw() + static_cast<size_t>(row) * bytes; };
    hold(bytes == 0 || std::memcmp(at(got, i), at(sent, t), bytes) == 0, "a row");
  }
  void check_slots(const Dispatched& in, int64_t i, const Received& from) const {
    const Tensor& weights = round_[from.rank].tokens.weights_TK;
    const int64_t k = in.topk_idx_RK.data.dim(1);
    for (int64_t slot = 0; slot < k; ++slot) {
      const int64_t e = local(from, slot);
      hold(in.topk_idx_RK.data.data<int64_t>()[i * k + slot] == e, "a local expert");
      if (!weights.defined()) continue;
      const double w = e < 0 ? 0 : element(weights, from.token * k + slot);
      const double got = element(in.weights_RK, i * k + slot);
      hold(got == w || (std::isnan(got) && std::isnan(w)), "a weight");
    }
  }

  const World& w_;
  const Round& round_;
  size_t me_;
  std::vector<Received> rows_;
};

// One rank.
class Player {
 public:
  Player(Group& world, const World& w, unsigned seed, std::vector<Round>& rounds)
      : world_(world),
        w_(w),
        me_(static_cast<size_t>(world.rank())),
        common_(seed),
        random_(seed + 1 + static_cast<unsigned>(world.rank())),
        rounds_(rounds),
        buffer_(world, ExpertMap(w.experts), w.buffer) {
    Buffer other(world, ExpertMap(w.experts));
    Tokens tokens = right(w, random_).tokens;
    foreign_ = run(other.dispatch(std::move(tokens), DispatchOptions())).handle;
  }

  void play() {
    for (int n = 0; n < kRounds; ++n) {
      const bool mine = is_mine(n);
      Brought& b = rounds_[static_cast<size_t>(n)][me_] = right(w_, random_);
      if (n > 0 && mine) damage(b, random_);
      play_round(rounds_[static_cast<size_t>(n)]);
    }
    Round& last = rounds_.back();
    const bool mine = is_mine(kRounds);
    last[me_] = right(w_, random_);
    try {
      return_damaged(last, mine);
    } catch (const CommError&) {
      throw;
    } catch (const Error& e) {
      const bool of_all = std::string_view(e.what()).find("has rows of") != std::string_view::npos;
      hold(mine || of_all, "a mistake of another rank is an Error here");
      if (world_.size() > 1) throw;  // the others wait
      play_round(last);
    }
  }

 private:
  // Whether this rank damages its arguments now: nobody, one or all do.
  bool is_mine(int n) {
    const int64_t who = common_.below(world_.size() + 2);
    return n > 0 && (who == world_.rank() || who == world_.size());
  }

  void play_round(Round& round) {
    Brought& b = round[me_];
    std::optional<Dispatched> in;
    try {
      in.emplace(run(buffer_.dispatch(b.tokens, b.options)));
      b.outcome = "ok";
    } catch (const CommError&) {
      throw std::logic_error("a CommError for a wrong argument");
    } catch (const Error& e) {
      b.outcome = std::string(e.what()).substr(0, sizeof "dispatch: rank 0" - 1);
    }
    world_.barrier().wait();
    for (const Brought& other : round) hold(other.outcome == b.outcome, "ranks are told of different ranks");
    if (!in) return;
    if (b.options.rows_later) {
      const Redispatched rows = {in->x_RD, in->scales_RS};
      run(buffer_.dispatch_into(b.tokens.x_TD, b.tokens.scales_TS, in->handle, rows));
    }
    const Account account(w_, round, me_);
    account.check_rows(*in);
    b.y_RD = random_.tensor({account.rows(), 3}, DType::f32);
    const Combined out = run(buffer_.combine(all_rows(b.y_RD), in->handle, Tensor()));
    Account::check_sums(w_, round, me_, out.x_TD, false);
  }

  void return_damaged(Round& round, bool damaged) {
    Brought& b = round[me_];
    const Dispatched in = run(buffer_.dispatch(b.tokens, b.options));
    const Account account(w_, round, me_);
    const bool again = common_.one_in(3);
    Handle handle = in.handle;
    if (damaged && random_.one_in(5)) handle = random_.one_in(2) ? Handle() : foreign_;
    if (again) {
      b.again_TD = random_.tensor(b.tokens.x_TD.shape(), w_.dtype);
      if (damaged) b.again_TD = random_.damaged(b.again_TD);
      const Tensor scales = damaged && random_.one_in(3) ? random_.damaged(b.again_TD) : Tensor();
      Redispatched got;
      if (common_.one_in(2)) {
        got = buffer_.room(b.again_TD, scales, handle);
        if (damaged && random_.one_in(2)) got.x_RD.data = random_.damaged(got.x_RD.data);
        run(buffer_.dispatch_into(b.again_TD, scales, handle, got));
      } else {
        got = run(buffer_.dispatch(b.again_TD, scales, handle));
      }
      account.check_again(got.x_RD);
      return;
    }
    b.y_RD = random_.tensor({account.rows(), 3}, DType::f32);
    CombineOptions options = {.quantize = common_.one_in(3)};
    const bool quantized = options.quantize;
    const Shape slots = w_.options.expand ? Shape{account.rows()} : Shape{account.rows(), w_.top_k};
    const Tensor weights = random_.tensor(slots, DType::f32);
    Rows y = damaged ? damaged_sums(b, weights, options) : all_rows(b.y_RD);
    const bool biased = !options.bias.empty();
    const Combined out = run(buffer_.combine(std::move(y), handle, std::move(options)));
    if (!biased) Account::check_sums(w_, round, me_, out.x_TD, quantized);
  }

  Rows damaged_sums(Brought& b, const Tensor& weights, CombineOptions& options) {
    if (random_.one_in(2)) b.y_RD = random_.damaged(b.y_RD);
    const int64_t tokens = b.tokens.x_TD.rows();
    if (random_.one_in(3)) options.weights = random_.damaged(weights);
    const Tensor sums = random_.tensor({tokens, 3}, DType::f32);
    if (random_.one_in(3)) options.into.x_TD = random_.damaged(sums);
    if (random_.one_in(6)) options.into.weights_TK = random_.damaged(sums);
    for (int64_t i = random_.one_in(3) ? random_.below(4) : 0; i > 0; --i) {
      options.bias.push_back(random_.damaged(random_.tensor({tokens, 3}, DType::f32)));
    }
    if (!b.y_RD.defined() || b.y_RD.shape().rank() == 0) return {b.y_RD, random_.tensor({1}, DType::i64)};
    Rows y = all_rows(b.y_RD);
    if (random_.one_in(4)) y.live = random_.damaged(y.live);
    if (random_.one_in(6)) {
      const int64_t live = random_.extreme();
      y.live = Tensor::of(Shape{1}, std::span<const int64_t>(&live, 1));
    }
    return y;
  }

  Group& world_;
  const World& w_;
  size_t me_;
  Random common_;  // the same on all ranks
  Random random_;
  std::vector<Round>& rounds_;
  Buffer buffer_;
  Handle foreign_;  // of another buffer
};

}  // namespace

void fuzz_buffer(int worlds) {
  fuzz_worlds(worlds, [](int ranks, unsigned seed) -> RankBody {
    const auto rounds = std::make_shared<std::vector<Round>>(kRounds + 1, Round(static_cast<size_t>(ranks)));
    return [=](Group& world) {
      const World w(ranks, world.shares_memory(), Random(seed));
      Player(world, w, seed, *rounds).play();
    };
  });
}

}  // namespace phalanx::ep
