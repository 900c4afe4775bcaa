#include "phalanx/ep/transfer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>

#include "phalanx/base/error.h"

namespace phalanx::ep {
namespace {

using Counts = PooledVector<int64_t>;

// Where each rank's rows begin, if they lie one rank behind the other.
Counts sums_before(const Counts& rows) {
  Counts out(rows.size());
  std::exclusive_scan(rows.begin(), rows.end(), out.begin(), int64_t{0});
  return out;
}

// The address of row starts[r] of tensor r, or of the only one.
PooledVector<std::byte*> bases(std::span<const Tensor> tensors, const Counts& starts) {
  PooledVector<std::byte*> out;
  for (size_t r = 0; r < starts.size(); ++r) {
    const Tensor& t = tensors[tensors.size() == 1 ? 0 : r];
    out.push_back(t.raw() + static_cast<size_t>(starts[r]) * row_bytes(t));
  }
  return out;
}

using StatementWords = std::array<int64_t, kStatementWords>;

void append(PooledVector<int64_t>& words, const Statement& s) {
  const auto more = std::bit_cast<StatementWords>(s);
  words.insert(words.end(), more.begin(), more.end());
}

// Of words [ranks, n + kStatementWords], each rank's statement.
PooledVector<Statement> statements_of(const Tensor& words, int64_t n) {
  PooledVector<Statement> out;
  for (int64_t r = 0; r < words.rows(); ++r) {
    StatementWords own;
    std::copy_n(words.data<int64_t>() + r * words.dim(1) + n, own.size(), own.begin());
    out.push_back(std::bit_cast<Statement>(own));
  }
  return out;
}

class Direct final : public Transfer {
 public:
  explicit Direct(Group& group) : group_(group) {}

  Task<Plan> plan(Layout layout, Statement own) override {
    const auto ranks = static_cast<size_t>(group_.size());
    const auto me = static_cast<size_t>(group_.rank());
    Counts words = layout.rows;
    append(words, own);
    const Shape shape = {1, std::ssize(words)};
    Work gather = group_.all_gather(Tensor::of(shape, std::span<const int64_t>(words)));
    const Tensor all = co_await gather;
    Plan plan = {{std::move(layout), Counts(ranks), Counts(ranks, 0)}, statements_of(all, group_.size())};
    const auto from_to = [&](size_t from, size_t to) {
      return all.data<int64_t>()[from * words.size() + to];
    };
    for (size_t s = 0; s < ranks; ++s) plan.route.recv_rows[s] = from_to(s, me);
    for (size_t r = 0; r < ranks; ++r) {
      for (size_t s = 0; s < me; ++s) plan.route.starts[r] += from_to(s, r);
    }
    co_return plan;
  }

  Task<PooledVector<Tensor>> spread(PooledVector<Tensor> rows, Route route, int64_t capacity) override {
    PooledVector<Tensor> out;
    for (const Tensor& x : rows) {
      const int64_t room = std::max(capacity, route.received());
      out.push_back(Tensor::empty(x.shape().with_rows(room), x.dtype()));
    }
    PooledVector<Tensor> everywhere = co_await peers(out);
    int64_t bytes = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      spread_rows(route.layout, rows[i], bases(of_tensor(everywhere, i), route.starts));
      bytes += static_cast<int64_t>(row_bytes(rows[i]));
    }
    everywhere.clear();  // before the barrier: after it, an owner's last reference is its own
    Work all_have_written =
        group_.unshare(bytes * others(route.layout.rows), bytes * others(route.recv_rows));
    co_await all_have_written;
    co_return out;
  }

  Task<PooledVector<Tensor>> collect(PooledVector<Tensor> rows, Route route,
                                     PooledVector<Tensor> first) override {
    PooledVector<Tensor> everywhere = co_await peers(rows);
    PooledVector<Tensor> out;
    for (size_t i = 0; i < rows.size(); ++i) {
      out.push_back(Tensor::empty(rows[i].shape().with_rows(route.layout.tokens()), rows[i].dtype()));
      sum_rows(route.layout, bases(of_tensor(everywhere, i), route.starts), out.back(), first);
      first.clear();
    }
    everywhere.clear();
    Work done = all_have_read(rows, route);
    co_await done;
    co_return out;
  }

  Task<Tensor> collect_quantized(Quantized rows, Route route, DType dtype,
                                 PooledVector<Tensor> first) override {
    PooledVector<Tensor> own = {rows.q_TD, rows.scales_TS};
    PooledVector<Tensor> everywhere = co_await peers(own);
    Tensor out = Tensor::empty(rows.q_TD.shape().with_rows(route.layout.tokens()), dtype);
    const PooledVector<std::byte*> q = bases(of_tensor(everywhere, 0), route.starts);
    const PooledVector<std::byte*> scales = bases(of_tensor(everywhere, 1), route.starts);
    sum_quantized_rows(route.layout, {q, scales}, out, first);
    everywhere.clear();
    Work done = all_have_read(own, route);
    co_await done;
    co_return out;
  }

 private:
  // Of every rank, those tensors: the first tensor's by rank, then the second's.
  Task<PooledVector<Tensor>> peers(PooledVector<Tensor> own) {
    const auto ranks = static_cast<size_t>(group_.size());
    PooledVector<Tensor> all(own.size() * ranks);
    PooledVector<Work> works;
    works.reserve(own.size());
    for (size_t i = 0; i < own.size(); ++i) {
      works.push_back(group_.share(own[i], std::span(all).subspan(i * ranks, ranks)));
    }
    for (Work& work : works) co_await work;
    for (size_t i = 0; i < all.size(); ++i) check_alike(all[i], all[i / ranks * ranks], i % ranks);
    co_return all;
  }

  // All ranks see all tensors, so that all throw.
  static void check_alike(const Tensor& x, const Tensor& of_0, size_t rank) {
    if (x.dtype() == of_0.dtype() && row_bytes(x) == row_bytes(of_0)) return;
    throw Error("rank {} has rows of {} bytes of {}, rank 0 of {} bytes of {}", rank, row_bytes(x),
                dtype_name(x.dtype()), row_bytes(of_0), dtype_name(of_0.dtype()));
  }

  std::span<const Tensor> of_tensor(const PooledVector<Tensor>& all, size_t i) const {
    const auto ranks = static_cast<size_t>(group_.size());
    return std::span(all).subspan(i * ranks, ranks);
  }

  // Of rows to or from each rank, those of other ranks.
  int64_t others(const Counts& rows) const {
    return std::accumulate(rows.begin(), rows.end(), -rows[static_cast<size_t>(group_.rank())]);
  }

  Work all_have_read(const PooledVector<Tensor>& rows, const Route& route) {
    int64_t bytes = 0;
    for (const Tensor& y : rows) bytes += static_cast<int64_t>(row_bytes(y));
    return group_.unshare(bytes * others(route.recv_rows), bytes * others(route.layout.rows));
  }

  Group& group_;
};

class Messages final : public Transfer {
 public:
  explicit Messages(Group& group) : group_(group) {}

  Task<Plan> plan(Layout layout, Statement own) override {
    Counts words;
    for (const int64_t n : layout.rows) {
      words.push_back(n);
      append(words, own);
    }
    const Tensor all = Tensor::of(Shape{group_.size(), 1 + kStatementWords}, std::span<const int64_t>(words));
    const Counts ones(layout.rows.size(), 1);
    Work exchange = group_.all_to_all(all, ones, ones);
    const Tensor received = co_await exchange;
    Plan plan = {{std::move(layout), {}, {}}, statements_of(received, 1)};
    for (int r = 0; r < group_.size(); ++r) {
      plan.route.recv_rows.push_back(received.data<int64_t>()[r * received.dim(1)]);
    }
    co_return plan;
  }

  Task<PooledVector<Tensor>> spread(PooledVector<Tensor> rows, Route route, int64_t capacity) override {
    const Layout& layout = route.layout;
    const Counts starts = sums_before(layout.rows);
    const int64_t all = std::accumulate(layout.rows.begin(), layout.rows.end(), int64_t{0});
    PooledVector<Work> works;
    for (const Tensor& x : rows) {
      const Tensor packed = Tensor::empty(x.shape().with_rows(all), x.dtype());
      spread_rows(layout, x, bases(std::span(&packed, 1), starts));
      works.push_back(group_.all_to_all(packed, layout.rows, route.recv_rows));
    }
    PooledVector<Tensor> out;
    for (Work& work : works) {
      Tensor received = co_await work;
      out.push_back(with_room(std::move(received), capacity));
    }
    co_return out;
  }

  Task<PooledVector<Tensor>> collect(PooledVector<Tensor> rows, Route route,
                                     PooledVector<Tensor> first) override {
    const Layout& layout = route.layout;
    const PooledVector<Tensor> back = co_await send_back(std::move(rows), route);
    PooledVector<Tensor> out;
    for (const Tensor& y : back) {
      out.push_back(Tensor::empty(y.shape().with_rows(layout.tokens()), y.dtype()));
      sum_rows(layout, bases(std::span(&y, 1), sums_before(layout.rows)), out.back(), first);
      first.clear();
    }
    co_return out;
  }

  Task<Tensor> collect_quantized(Quantized rows, Route route, DType dtype,
                                 PooledVector<Tensor> first) override {
    const Layout& layout = route.layout;
    PooledVector<Tensor> own = {rows.q_TD, rows.scales_TS};
    const PooledVector<Tensor> back = co_await send_back(std::move(own), route);
    Tensor out = Tensor::empty(rows.q_TD.shape().with_rows(layout.tokens()), dtype);
    const Counts starts = sums_before(layout.rows);
    const PooledVector<std::byte*> q = bases(std::span(&back[0], 1), starts);
    const PooledVector<std::byte*> scales = bases(std::span(&back[1], 1), starts);
    sum_quantized_rows(layout, {q, scales}, out, first);
    co_return out;
  }

 private:
  // The received tensor in one of at least `capacity` rows.
  static Tensor with_room(Tensor received, int64_t capacity) {
    if (received.rows() >= capacity) return received;
    Tensor out = Tensor::empty(received.shape().with_rows(capacity), received.dtype());
    if (received.bytes() > 0) std::memcpy(out.raw(), received.raw(), received.bytes());
    return out;
  }

  // Rows to where they came from.
  Task<PooledVector<Tensor>> send_back(PooledVector<Tensor> rows, Route route) {
    PooledVector<Work> works;
    for (const Tensor& y : rows) {
      works.push_back(group_.all_to_all(y, route.recv_rows, route.layout.rows));
    }
    PooledVector<Tensor> out;
    for (Work& work : works) {
      Tensor back = co_await work;
      out.push_back(std::move(back));
    }
    co_return out;
  }

  Group& group_;
};

}  // namespace

int64_t Route::received() const { return std::accumulate(recv_rows.begin(), recv_rows.end(), int64_t{0}); }

std::unique_ptr<Transfer> direct_transfer(Group& group) { return std::make_unique<Direct>(group); }
std::unique_ptr<Transfer> message_transfer(Group& group) { return std::make_unique<Messages>(group); }

}  // namespace phalanx::ep
