// The low-latency mode with damaged arguments. A refused call has sent nothing, so the rank makes it again,
// right.
#include <cstring>
#include <limits>

#include "phalanx/base/error.h"
#include "phalanx/comm/failure.h"
#include "phalanx/ep/buffer.h"
#include "phalanx/ep/low_latency.h"
#include "tests/ep/argument_fuzz.h"

namespace phalanx::ep {
namespace {

// T tokens of a rank, H width, K top-k, L local experts, M slots of one

constexpr int kRounds = 5;
constexpr int64_t kTopK = 3;

struct World {
  World(int ranks, Random random) {
    for (int r = 0; r < ranks; ++r) experts.push_back(random.below(4));
    experts[static_cast<size_t>(random.below(ranks))] += 1;
    constexpr std::array kDtypes = {DType::f64, DType::f32, DType::bf16, DType::f16};
    options = {.max_tokens = 1 + random.below(5), .width = 1 + random.below(9), .dtype = random.of(kDtypes)};
    for (const int64_t n : experts) all_experts += n;
  }
  DType weight_dtype() const { return options.dtype == DType::f64 ? DType::f64 : DType::f32; }

  std::vector<int64_t> experts;
  int64_t all_experts = 0;
  LowLatencyOptions options;
};

// What a rank brings to a dispatch and its combine.
struct Brought {
  Tensor x_TH;
  Tensor topk_idx_TK;
  Tensor weights_TK;
  LowLatencyStats stats;
};
using Round = std::vector<Brought>;

Brought right(const World& w, int rank, Random& random) {
  const int64_t tokens = random.below(w.options.max_tokens + 1);
  Brought b = {random.tensor({tokens, w.options.width}, w.options.dtype),
               Tensor::empty({tokens, kTopK}, DType::i64),
               random.tensor({tokens, kTopK}, w.weight_dtype()),
               {.rows_L = Tensor::zeros({w.experts[static_cast<size_t>(rank)]}, DType::i32),
                .waited_R = Tensor::zeros({std::ssize(w.experts)}, DType::i64)}};
  for (int64_t& e : b.topk_idx_TK.span<int64_t>()) e = random.below(w.all_experts + 1) - 1;
  return b;
}

void damage_choice(const Tensor& idx, Random& random) {
  if (idx.defined() && idx.dtype() == DType::i64 && idx.numel() > 0) {
    idx.data<int64_t>()[random.below(idx.numel())] = random.extreme();
  }
}

void damage(Brought& b, Random& random) {
  const int64_t how = random.below(5);
  if (how == 0) b.x_TH = random.damaged(b.x_TH);
  if (how == 1) b.topk_idx_TK = random.damaged(b.topk_idx_TK);
  if (how == 2) damage_choice(b.topk_idx_TK, random);
  if (how == 3) b.stats.rows_L = random.damaged(b.stats.rows_L);
  if (how == 4) b.stats.waited_R = random.damaged(b.stats.waited_R);
}

// One rank.
class Player {
 public:
  Player(Group& world, const World& w, unsigned seed, std::vector<Round>& rounds)
      : rank_(world.rank()),
        w_(w),
        random_(seed + 1 + static_cast<unsigned>(rank_)),
        rounds_(rounds),
        buffer_(world, ExpertMap(w.experts), w.options) {}

  void play() {
    for (Round& round : rounds_) play_round(round);
  }

 private:
  void play_round(Round& round) {
    Brought& b = round[static_cast<size_t>(rank_)];
    LowLatencyDispatched in = dispatch(b);
    refuse([&] { buffer_.combine(in.recv_LMH, b.topk_idx_TK, b.weights_TK, in.handle).wait(); });
    in.hook.wait();
    check_rows(round, in);
    refuse([&] { buffer_.combine(in.recv_LMH, b.topk_idx_TK, b.weights_TK, other_handle()).wait(); });
    refuse([&] { buffer_.combine_buffer(other_handle()); });
    combine(b, in);
  }

  LowLatencyDispatched dispatch(Brought& b) {
    b = right(w_, rank_, random_);
    if (random_.one_in(2)) {
      damage(b, random_);
      try {
        return buffer_.dispatch(b.x_TH, b.topk_idx_TK, b.stats);
      } catch (const CommError&) {
        throw std::logic_error("a CommError for a wrong argument");
      } catch (const Error&) {
        b = right(w_, rank_, random_);
      }
    }
    return buffer_.dispatch(b.x_TH, b.topk_idx_TK, b.stats);
  }

  // The experts make of each row itself.
  void combine(const Brought& b, const LowLatencyDispatched& in) {
    old_ = in.handle;
    if (random_.one_in(2)) {
      Brought wrong = b;
      Tensor y = in.recv_LMH;
      Tensor out;
      const int64_t how = random_.below(4);
      if (how == 0) wrong.topk_idx_TK = copy_and_damage(b.topk_idx_TK);
      if (how == 1) wrong.weights_TK = random_.damaged(b.weights_TK);
      if (how == 2) y = Tensor::empty(random_.damaged(y).shape(), w_.options.dtype);
      if (how == 3) out = random_.damaged(b.x_TH);
      if (how == 2 && y.shape() == in.recv_LMH.shape()) copy_into(y, in.recv_LMH);
      try {
        Hook sums = buffer_.combine(y, wrong.topk_idx_TK, wrong.weights_TK, in.handle, out);
        return check_sums(b.x_TH, wrong, sums.wait());
      } catch (const CommError&) {
        throw std::logic_error("a CommError for a wrong argument");
      } catch (const Error&) {  // once more
      }
    }
    Hook sums = buffer_.combine(in.recv_LMH, b.topk_idx_TK, b.weights_TK, in.handle);
    check_sums(b.x_TH, b, sums.wait());
  }

  Tensor copy_and_damage(const Tensor& idx) {
    if (random_.one_in(2)) return random_.damaged(idx);
    const Tensor copy = Tensor::empty(idx.shape(), idx.dtype());
    copy_into(copy, idx);
    damage_choice(copy, random_);
    return copy;
  }

  // A handle of nothing that lives.
  LowLatencyHandle other_handle() {
    LowLatencyHandle handle = random_.one_in(2) ? old_ : LowLatencyHandle();
    if (random_.one_in(2)) handle.number = random_.extreme() | int64_t{1} << 40;
    return handle;
  }

  template <class Call>
  static void refuse(Call call) {
    try {
      call();
    } catch (const CommError&) {
      throw std::logic_error("a CommError for a wrong argument");
    } catch (const Error&) {
      return;
    }
    throw std::logic_error("a call that is wrong for sure went through");
  }

  // Rows of every rank's tokens in the order of ranks, for each local expert.
  void check_rows(const Round& round, const LowLatencyDispatched& in) const {
    int64_t first = 0;
    for (int r = 0; r < rank_; ++r) first += w_.experts[static_cast<size_t>(r)];
    for (int64_t e = 0; e < in.count_L.rows(); ++e) {
      const Tensor rows = in.recv_LMH.slice(e, e + 1).view({in.recv_LMH.dim(1), w_.options.width});
      int64_t row = 0;
      for (const Brought& b : round) {
        for (int64_t t = 0; t < b.x_TH.rows(); ++t) {
          const auto slots = b.topk_idx_TK.slice(t, t + 1).span<int64_t>();
          if (std::ranges::find(slots, first + e) == slots.end()) continue;
          const Tensor x = b.x_TH.slice(t, t + 1);
          hold(std::memcmp(rows.slice(row, row + 1).raw(), x.raw(), x.bytes()) == 0, "a row");
          ++row;
        }
      }
      hold(in.count_L.data<int32_t>()[e] == row, "how many rows an expert has");
    }
  }

  static void check_sums(const Tensor& x, const Brought& b, const Tensor& out) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      double sum = 0;
      const int64_t k = b.topk_idx_TK.dim(1);
      for (int64_t slot = i / x.dim(1) * k; slot < (i / x.dim(1) + 1) * k; ++slot) {
        if (b.topk_idx_TK.data<int64_t>()[slot] >= 0) sum += element(b.weights_TK, slot) * element(x, i);
      }
      hold(element(out, i) == sum, "a sum");
    }
  }

  int rank_;
  const World& w_;
  Random random_;
  std::vector<Round>& rounds_;
  LowLatencyBuffer buffer_;
  LowLatencyHandle old_;
};

// A map and options of which some may be wrong.
struct Made {
  Made(int ranks, Random& random) {
    for (int r = 0; r < ranks; ++r) experts.push_back(random.below(3));
    if (random.one_in(4)) experts[0] = random.extreme();
    if (random.one_in(4)) experts.push_back(1);
    constexpr std::array kWays = {Way::automatic, Way::direct, Way::messages, Way::two_level, Way::by_size};
    options = {.way = random.of(kWays), .ranks_of_node = static_cast<int>(random.below(5)) - 1};
    if (random.one_in(5)) options.ranks_of_node = static_cast<int>(random.extreme() >> 32);
    constexpr std::array kDtypes = {DType::f64, DType::bf16, DType::i32, DType::u8, DType::f8e4m3};
    few = {.max_tokens = random.below(4), .width = random.below(4), .dtype = random.of(kDtypes)};
    if (random.one_in(4)) few.max_tokens = random.extreme();
    if (random.one_in(4)) few.width = random.extreme();
    if (random.one_in(4)) few.mask_after = std::chrono::milliseconds(random.extreme());
  }

  std::vector<int64_t> experts;
  BufferOptions options;
  LowLatencyOptions few;
};

}  // namespace

void fuzz_low_latency(int worlds) {
  fuzz_worlds(worlds, [](int ranks, unsigned seed) -> RankBody {
    const auto rounds = std::make_shared<std::vector<Round>>(kRounds, Round(static_cast<size_t>(ranks)));
    return [=](Group& world) {
      const World w(ranks, Random(seed));
      Player(world, w, seed, *rounds).play();
    };
  });
}

void fuzz_makers(int worlds) {
  fuzz_worlds(worlds, [](int ranks, unsigned seed) -> RankBody {
    return [=](Group& world) {
      Random random(seed);
      const bool alike = random.one_in(2);
      if (!alike && world.rank() == 0) random = Random(seed + 1);
      const Made made(ranks, random);
      if (seed % 2 == 0) {
        Buffer(world, ExpertMap(made.experts), made.options);
      } else {
        LowLatencyBuffer(world, ExpertMap(made.experts), made.few);
      }
    };
  });
}

}  // namespace phalanx::ep
