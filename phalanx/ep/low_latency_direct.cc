#include <atomic>
#include <cstring>

#include "phalanx/ep/low_latency_way.h"

namespace phalanx::ep {
namespace {

// What a rank tells the others of one of its two turns.
enum class News : uint8_t { dispatched, combined };

// One rank's words, which the others read: when it has sent what (flags, apart from each other), which of its
// tokens go to each expert, and where the rows of each source begin.
class Board {
 public:
  Board(const LowLatencyCore& core, int owner)
      : sets_(core.experts.experts() * core.words()), ranges_(core.experts.count(owner) * core.ranks()) {}

  int64_t words() const { return 4 * kFlag + 2 * (sets_ + ranges_); }
  static int64_t flag(News news, int64_t turn) { return (2 * static_cast<int64_t>(news) + turn % 2) * kFlag; }
  int64_t sets(int64_t turn) const { return 4 * kFlag + turn % 2 * sets_; }
  int64_t ranges(int64_t turn) const { return 4 * kFlag + 2 * sets_ + turn % 2 * ranges_; }

 private:
  static constexpr int64_t kFlag = kApart / sizeof(int64_t);
  int64_t sets_;
  int64_t ranges_;
};

// Waits until a rank has told that it has done turn `number`.
class Told final : public FromRank {
 public:
  Told(LowLatencyCore& core, const Tensor& board, int rank, News news, int64_t number, const Hooked& hook)
      : FromRank(core.mask, core.group.info(), rank, hook),
        flag_(board.data<int64_t>()[Board::flag(news, number)]),
        told_(number + 1) {}

  /// False where the rank is masked, or has gone on without this one: it had masked it.
  bool here() { return flag_.load(std::memory_order_seq_cst) == told_; }

 private:
  bool arrived() override { return flag_.load(std::memory_order_seq_cst) >= told_; }

  std::atomic_ref<int64_t> flag_;
  int64_t told_;
};

class Direct final : public LowLatencyWay {
 public:
  explicit Direct(LowLatencyCore& core) : LowLatencyWay(core) {
    const LowLatencyOptions& o = core.options;
    const Board board(core, core.rank());
    const Tensor words = Tensor::zeros({board.words()}, DType::i64);
    const auto bytes = static_cast<int64_t>(core.sent_bytes());
    stages_ = everyones(Tensor::empty({2, o.max_tokens, bytes}, DType::u8));
    outputs_ = everyones(Tensor::empty({2, core.local(), core.slots(), o.width}, o.dtype));
    boards_ = everyones(words);
    const int64_t experts = core.experts.experts();
    for (int64_t t = 0; t < 2; ++t) {
      LowLatencyTurn& turn = core.turn(t);
      turn.chosen_EW =
          words.slice(board.sets(t), board.sets(t) + experts * core.words()).view({experts, core.words()});
      turn.range_LR = words.slice(board.ranges(t), board.ranges(t) + core.local() * core.ranks())
                          .view({core.local(), core.ranks()});
      turn.output_LMH = outputs_[me()].slice(t, t + 1).view({core.local(), core.slots(), o.width});
    }
  }

  Task<> dispatch(Call call, Tensor rows, LowLatencyStats stats, int64_t number) override {
    LowLatencyTurn& turn = core_.turn(number);
    if (rows.bytes() > 0) std::memcpy(stage(core_.rank(), number), rows.raw(), rows.bytes());
    tell(call, News::dispatched, number);
    const Hooked hook{turn.dispatch_called, stats.waited_R};
    Called called(hook.called);
    co_await Suspend(called);
    turn.begin();
    int64_t taken = 0;
    for (int s = 0; s < core_.ranks(); ++s) {
      Told told(core_, boards_[static_cast<size_t>(s)], s, News::dispatched, number, hook);
      co_await Suspend(told);
      taken += take(s, !core_.mask.masked(s) && told.here(), number);
    }
    call.count(given(turn), taken);
    end_dispatch(number, stats.rows_L);
  }

  Task<> combine(Call call, LowLatencySums sums, int64_t number) override {
    LowLatencyTurn& turn = core_.turn(number);
    turn.keep_outputs(sums.y_LMH);
    tell(call, News::combined, number);
    const Hooked hook{turn.combine_called, sums.waited_R};
    Called called(hook.called);
    co_await Suspend(called);
    PooledVector<const std::byte*> first_row(static_cast<size_t>(core_.experts.experts()), nullptr);
    int64_t read = 0;
    for (int r = 0; r < core_.ranks(); ++r) {
      Told told(core_, boards_[static_cast<size_t>(r)], r, News::combined, number, hook);
      co_await Suspend(told);
      if (core_.mask.masked(r) || !told.here() || turn.left_out[static_cast<size_t>(r)]) continue;
      read += find_rows(r, first_row, number);
    }
    call.count(returned(turn), read);
    sum(sums, first_row, number);
  }

 private:
  size_t me() const { return static_cast<size_t>(core_.rank()); }

  // Every rank's x.
  PooledVector<Tensor> everyones(const Tensor& x) {
    PooledVector<Tensor> all(static_cast<size_t>(core_.ranks()));
    core_.group.share(x, all).wait();
    return all;
  }

  std::byte* stage(int rank, int64_t number) const {
    const Tensor& both = stages_[static_cast<size_t>(rank)];
    return both.raw() + static_cast<size_t>(number % 2) * both.bytes() / 2;
  }
  const std::byte* output(int rank, int64_t number) const {
    const Tensor& both = outputs_[static_cast<size_t>(rank)];
    return both.raw() + static_cast<size_t>(number % 2) * both.bytes() / 2;
  }

  void tell(const Call& call, News news, int64_t number) const {
    int64_t& flag = boards_[me()].data<int64_t>()[Board::flag(news, number)];
    std::atomic_ref(flag).store(number + 1, std::memory_order_seq_cst);
    for (const int member : call.group().members) {
      if (member == call.transport().rank()) continue;
      // Over MPI there are none: ranks that wait look again by themselves.
      if (RankPage* page = call.transport().page(member)) page->bell.ring();
    }
  }

  // The rows of one source come to their places. Gives the bytes that came from another rank.
  int64_t take(int source, bool sent, int64_t number) {
    LowLatencyTurn& turn = core_.turn(number);
    if (!sent) {
      turn.skip(source);
      return 0;
    }
    const Board board(core_, source);
    const int64_t words = core_.words();
    const auto all = boards_[static_cast<size_t>(source)].span<int64_t>();
    const auto mine =
        all.subspan(static_cast<size_t>(board.sets(number) + core_.experts.first(core_.rank()) * words),
                    static_cast<size_t>(core_.local() * words));
    PooledVector<uint64_t> sets(mine.begin(), mine.end());
    const TokenSets chosen(sets.data(), core_.local(), words);
    turn.place(source, {.chosen = chosen, .first = stage(source, number)});
    return source == core_.rank() ? 0 : bytes_of(chosen);
  }

  // Rows and sets.
  int64_t bytes_of(const TokenSets& sets) const {
    return LowLatencyCore::rows(sets) * static_cast<int64_t>(core_.sent_bytes()) +
           sets.sets() * core_.words() * static_cast<int64_t>(sizeof(uint64_t));
  }
  int64_t given(const LowLatencyTurn& turn) const {
    int64_t bytes = 0;
    for (int r = 0; r < core_.ranks(); ++r) {
      if (r == core_.rank() || turn.left_out[static_cast<size_t>(r)]) continue;
      bytes += bytes_of(core_.sets_of(turn.chosen_EW, r));
    }
    return bytes;
  }

  // Where rank r's experts have left this rank's rows. Gives their bytes, if they are another rank's.
  int64_t find_rows(int r, std::span<const std::byte*> first_row, int64_t number) const {
    const TokenSets chosen = core_.sets_of(core_.turns[static_cast<size_t>(number % 2)].chosen_EW, r);
    const int64_t* const ranges =
        boards_[static_cast<size_t>(r)].data<int64_t>() + Board(core_, r).ranges(number);
    int64_t rows = 0;
    for (int64_t e = 0; e < chosen.sets(); ++e) {
      const int64_t range = ranges[e * core_.ranks() + core_.rank()];
      if (range_count(range) == 0 || range_count(range) != chosen.count(e)) continue;  // masked there
      const auto row = static_cast<size_t>(e * core_.slots() + range_begin(range));
      first_row[static_cast<size_t>(core_.experts.first(r) + e)] =
          output(r, number) + row * core_.row_bytes();
      rows += range_count(range);
    }
    return r == core_.rank() ? 0 : rows * static_cast<int64_t>(core_.row_bytes());
  }

  int64_t returned(const LowLatencyTurn& turn) const {
    int64_t rows = 0;
    for (int64_t i = 0; i < turn.range_LR.numel(); ++i) {
      if (i % core_.ranks() == core_.rank()) continue;
      rows += range_count(turn.range_LR.data<int64_t>()[i]);
    }
    return rows * static_cast<int64_t>(core_.row_bytes());
  }

  PooledVector<Tensor> stages_;   // of every rank: [2, max, bytes of a row as sent]
  PooledVector<Tensor> outputs_;  // [2, its experts, M, H]
  PooledVector<Tensor> boards_;
};

}  // namespace

std::unique_ptr<LowLatencyWay> direct_low_latency(LowLatencyCore& core) {
  return std::make_unique<Direct>(core);
}

}  // namespace phalanx::ep
