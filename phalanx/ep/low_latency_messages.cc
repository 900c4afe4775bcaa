#include <cstring>
#include <optional>

#include "phalanx/ep/low_latency_way.h"

namespace phalanx::ep {
namespace {

// Messages of one call with one other rank. A dispatch has two steps: the sets, whose size all know, and the
// rows that these name; both leave at once.
struct Mail {
  Tensor sets;  // that come
  Tensor rows;
  std::optional<Exchange> sets_out;
  std::optional<Exchange> rows_out;
  std::optional<Exchange> sets_in;
  std::optional<Exchange> rows_in;
};

// Moves what has not left or come yet.
void move(std::span<Mail> mail) {
  for (Mail& m : mail) {
    for (std::optional<Exchange>* x : {&m.sets_out, &m.rows_out, &m.sets_in, &m.rows_in}) {
      if (*x) (*x)->poll();
    }
  }
}

// Waits for some messages of one rank, and meanwhile moves those of all.
class Came final : public FromRank {
 public:
  Came(LowLatencyCore& core, std::span<Mail> mail, std::optional<Exchange> Mail::*which, int rank,
       const Hooked& hook)
      : FromRank(core.mask, core.group.info(), rank, hook),
        mail_(mail),
        awaited_(mail[static_cast<size_t>(rank)].*which) {}

 private:
  bool arrived() override {
    move(mail_);
    return !awaited_ || awaited_->poll();
  }

  std::span<Mail> mail_;
  std::optional<Exchange>& awaited_;
};

// Waits until a hook has been called, and meanwhile moves messages.
class Moving final : public CommWaitable {
 public:
  Moving(std::span<Mail> mail, const bool& called) : mail_(mail), called_(called) {}
  bool poll() override {
    move(mail_);
    return called_;
  }
  PooledVector<int> missing() const override { return {}; }

 private:
  std::span<Mail> mail_;
  const bool& called_;
};

class Messages final : public LowLatencyWay {
 public:
  explicit Messages(LowLatencyCore& core) : LowLatencyWay(core) {
    for (LowLatencyTurn& turn : core.turns) {
      turn.chosen_EW = Tensor::zeros({core.experts.experts(), core.words()}, DType::i64);
      turn.range_LR = Tensor::zeros({core.local(), core.ranks()}, DType::i64);
      turn.output_LMH = Tensor::empty({core.local(), core.slots(), core.options.width}, core.options.dtype);
    }
  }

  // What comes is taken in as soon as this rank waits for anything; it finds its places when the hook is
  // called.
  Task<> dispatch(Call call, Tensor sent, LowLatencyStats stats, int64_t number) override {
    LowLatencyTurn& turn = core_.turn(number);
    PooledVector<Mail> mail(static_cast<size_t>(core_.ranks()));
    for (int r = 0; r < core_.ranks(); ++r) post(call, sent, turn, r, mail[static_cast<size_t>(r)]);
    const Tensor own = rows_of(sent, core_.sets_of(turn.chosen_EW, core_.rank()));
    const Hooked receiving{turn.dispatch_called, stats.waited_R};
    const Hooked sending{turn.dispatch_called, Tensor()};
    for (int s = 0; s < core_.ranks(); ++s) {
      Came sets(core_, mail, &Mail::sets_in, s, receiving);
      co_await Suspend(sets);
      expect_rows(call, s, mail[static_cast<size_t>(s)]);
    }
    for (int s = 0; s < core_.ranks(); ++s) {
      Came rows(core_, mail, &Mail::rows_in, s, receiving);
      co_await Suspend(rows);
    }
    Moving until_called(mail, receiving.called);
    co_await Suspend(until_called);
    turn.begin();
    for (int s = 0; s < core_.ranks(); ++s) {
      Mail& m = mail[static_cast<size_t>(s)];
      if (s == core_.rank()) {
        turn.place(s, {core_.sets_of(turn.chosen_EW, s), own.raw(), true});
      } else if (m.rows.defined() && !core_.mask.masked(s)) {
        turn.place(s, {TokenSets(m.sets), m.rows.raw(), true});
      } else {
        turn.skip(s);
      }
    }
    for (int r = 0; r < core_.ranks(); ++r) {
      Came sets_left(core_, mail, &Mail::sets_out, r, sending);
      co_await Suspend(sets_left);
      Came rows_left(core_, mail, &Mail::rows_out, r, sending);
      co_await Suspend(rows_left);
    }
    end_dispatch(number, stats.rows_L);
  }

  Task<> combine(Call call, LowLatencySums sums, int64_t number) override {
    LowLatencyTurn& turn = core_.turn(number);
    turn.keep_outputs(sums.y_LMH);
    PooledVector<Mail> mail(static_cast<size_t>(core_.ranks()));
    for (int r = 0; r < core_.ranks(); ++r) {
      if (away(r) || turn.left_out[static_cast<size_t>(r)]) continue;
      exchange_outputs(call, turn, r, mail[static_cast<size_t>(r)]);
    }
    const Hooked hook{turn.combine_called, sums.waited_R};
    for (int r = 0; r < core_.ranks(); ++r) {
      Came rows(core_, mail, &Mail::rows_in, r, hook);
      co_await Suspend(rows);
    }
    Moving until_called(mail, hook.called);
    co_await Suspend(until_called);
    PooledVector<const std::byte*> first_row(static_cast<size_t>(core_.experts.experts()), nullptr);
    own_rows(turn, first_row);
    for (int r = 0; r < core_.ranks(); ++r) {
      const Mail& m = mail[static_cast<size_t>(r)];
      if (m.rows.defined() && !core_.mask.masked(r)) find_rows(turn, r, m.rows, first_row);
    }
    sum(sums, first_row, number);
  }

 private:
  // This rank itself, or a masked one.
  bool away(int r) const { return r == core_.rank() || core_.mask.masked(r); }

  void exchange(const Call& call, uint64_t step, PooledVector<P2P> messages,
                std::optional<Exchange>& to) const {
    int64_t sent = 0;
    int64_t received = 0;
    for (P2P& m : messages) {
      (m.kind == P2P::Kind::send ? sent : received) += static_cast<int64_t>(m.buffer.bytes());
      m.peer = call.group().members[static_cast<size_t>(m.peer)];
    }
    call.count(sent, received);
    const Tag tag{.group = call.group().id, .sequence = call.sequence(), .step = step};
    to.emplace(call.transport(), std::move(messages), tag, call.fingerprint());
  }

  static PooledVector<P2P> one(P2P message) {
    PooledVector<P2P> messages;
    messages.push_back(std::move(message));
    return messages;
  }

  int64_t in_some(const TokenSets& chosen) const {
    PooledVector<uint64_t> any(static_cast<size_t>(core_.words()), 0);
    const TokenSets all(any.data(), 1, core_.words());
    chosen.unite_into(all);
    return all.count(0);
  }

  // A copy of the rows of tokens that are in some set.
  Tensor rows_of(const Tensor& sent, const TokenSets& chosen) const {
    const size_t bytes = core_.sent_bytes();
    const Tensor rows = Tensor::empty({in_some(chosen), static_cast<int64_t>(bytes)}, DType::u8);
    std::byte* to = rows.raw();
    for (int64_t t = 0; t < sent.rows(); ++t) {
      bool any = false;
      for (int64_t e = 0; e < chosen.sets(); ++e) any = any || chosen.has(e, t);
      if (!any) continue;
      std::memcpy(to, sent.raw() + static_cast<size_t>(t) * bytes, bytes);
      to += bytes;
    }
    return rows;
  }

  void post(const Call& call, const Tensor& sent, const LowLatencyTurn& turn, int r, Mail& mail) const {
    if (away(r)) return;
    if (core_.experts.count(r) > 0) {
      const TokenSets chosen = core_.sets_of(turn.chosen_EW, r);
      const Tensor sets = Tensor::empty({chosen.sets(), core_.words()}, DType::i64);
      const Tensor from = turn.chosen_EW.slice(core_.experts.first(r), core_.experts.first(r + 1));
      std::memcpy(sets.raw(), from.raw(), from.bytes());
      exchange(call, 0, one(send_to(r, sets)), mail.sets_out);
      const Tensor rows = rows_of(sent, chosen);
      if (rows.rows() > 0) exchange(call, 1, one(send_to(r, rows)), mail.rows_out);
    }
    if (core_.local() == 0) return;
    mail.sets = Tensor::empty({core_.local(), core_.words()}, DType::i64);
    exchange(call, 0, one(recv_from(r, mail.sets)), mail.sets_in);
  }

  // The sets of rank s are here, unless it is masked.
  void expect_rows(const Call& call, int s, Mail& mail) const {
    if (away(s) || !mail.sets_in) return;
    const auto bytes = static_cast<int64_t>(core_.sent_bytes());
    mail.rows = Tensor::empty({in_some(TokenSets(mail.sets)), bytes}, DType::u8);
    if (mail.rows.rows() > 0) exchange(call, 1, one(recv_from(s, mail.rows)), mail.rows_in);
  }

  // This rank's outputs for r's tokens go there from where they lie; those for this rank's tokens come.
  void exchange_outputs(const Call& call, const LowLatencyTurn& turn, int r, Mail& mail) const {
    PooledVector<P2P> messages;
    const Tensor outputs = turn.output_LMH.view({core_.local() * core_.slots(), core_.options.width});
    for (int64_t e = 0; e < core_.local(); ++e) {
      const int64_t range = turn.range_LR.data<int64_t>()[e * core_.ranks() + r];
      if (range_count(range) == 0) continue;
      const int64_t first = e * core_.slots() + range_begin(range);
      messages.push_back(send_to(r, outputs.slice(first, first + range_count(range))));
    }
    const TokenSets chosen = core_.sets_of(turn.chosen_EW, r);
    mail.rows = Tensor::empty({LowLatencyCore::rows(chosen), core_.options.width}, core_.options.dtype);
    int64_t row = 0;
    for (int64_t e = 0; e < chosen.sets(); ++e) {
      const int64_t n = chosen.count(e);
      if (n > 0) messages.push_back(recv_from(r, mail.rows.slice(row, row + n)));
      row += n;
    }
    if (!messages.empty()) exchange(call, 0, std::move(messages), mail.rows_in);
  }

  void own_rows(const LowLatencyTurn& turn, std::span<const std::byte*> first_row) const {
    for (int64_t e = 0; e < core_.local(); ++e) {
      const int64_t range = turn.range_LR.data<int64_t>()[e * core_.ranks() + core_.rank()];
      if (range_count(range) == 0) continue;
      const auto row = static_cast<size_t>(e * core_.slots() + range_begin(range));
      first_row[static_cast<size_t>(core_.experts.first(core_.rank()) + e)] =
          turn.output_LMH.raw() + row * core_.row_bytes();
    }
  }

  // Rows that came from r: of its experts one behind the other.
  void find_rows(const LowLatencyTurn& turn, int r, const Tensor& rows,
                 std::span<const std::byte*> first_row) const {
    const TokenSets chosen = core_.sets_of(turn.chosen_EW, r);
    const std::byte* at = rows.raw();
    for (int64_t e = 0; e < chosen.sets(); ++e) {
      const int64_t n = chosen.count(e);
      if (n > 0) first_row[static_cast<size_t>(core_.experts.first(r) + e)] = at;
      at += static_cast<size_t>(n) * core_.row_bytes();
    }
  }
};

}  // namespace

std::unique_ptr<LowLatencyWay> message_low_latency(LowLatencyCore& core) {
  return std::make_unique<Messages>(core);
}

}  // namespace phalanx::ep
