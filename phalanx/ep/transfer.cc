#include "phalanx/ep/transfer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>

#include "phalanx/ep/row_places.h"

namespace phalanx::ep {
namespace {

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

  LinkBytes sent() const override { return {.inside = group_.traffic().sent}; }

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

  PooledVector<Tensor> room(const PooledVector<Tensor>& like, int64_t rows) const override {
    return shareable_rows(group_, like, rows);
  }

  Task<> spread(PooledVector<Tensor> rows, Route route, PooledVector<Tensor> room) override {
    PooledVector<Tensor> everywhere = co_await everyones(group_, std::move(room));
    const int64_t bytes = bytes_of_row(rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      spread_rows(route.layout, rows[i], bases(of_tensor(everywhere, i, group_.size()), route.starts));
    }
    everywhere.clear();  // before the barrier: after it, an owner's last reference is its own
    Work all_have_written = group_.unshare(bytes * others(route.layout.rows, group_.rank()),
                                           bytes * others(route.recv_rows, group_.rank()));
    co_await all_have_written;
  }

  Task<> collect(PooledVector<Tensor> rows, Route route, PooledVector<Tensor> first,
                 PooledVector<Tensor> sums) override {
    make_shareable(group_, rows);
    PooledVector<Tensor> everywhere = co_await everyones(group_, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      sum_rows(route.layout, bases(of_tensor(everywhere, i, group_.size()), route.starts), sums[i], first);
      first.clear();
    }
    everywhere.clear();
    Work done = all_have_read(rows, route);
    co_await done;
  }

  Task<> collect_quantized(Quantized rows, Route route, PooledVector<Tensor> first, Tensor sums) override {
    PooledVector<Tensor> own = {rows.q_TD, rows.scales_TS};
    make_shareable(group_, own);
    PooledVector<Tensor> everywhere = co_await everyones(group_, own);
    const PooledVector<std::byte*> q = bases(of_tensor(everywhere, 0, group_.size()), route.starts);
    const PooledVector<std::byte*> scales = bases(of_tensor(everywhere, 1, group_.size()), route.starts);
    sum_quantized_rows(route.layout, {q, scales}, sums, first);
    everywhere.clear();
    Work done = all_have_read(own, route);
    co_await done;
  }

 private:
  Work all_have_read(const PooledVector<Tensor>& rows, const Route& route) {
    const int64_t bytes = bytes_of_row(rows);
    return group_.unshare(bytes * others(route.recv_rows, group_.rank()),
                          bytes * others(route.layout.rows, group_.rank()));
  }

  Group& group_;
};

class Messages final : public Transfer {
 public:
  explicit Messages(Group& group) : group_(group) {}

  LinkBytes sent() const override { return {.between = group_.traffic().sent}; }

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

  PooledVector<Tensor> room(const PooledVector<Tensor>& like, int64_t rows) const override {
    return new_rows(like, rows);
  }

  Task<> spread(PooledVector<Tensor> rows, Route route, PooledVector<Tensor> room) override {
    return send_rows(group_, std::move(rows), std::move(route.layout), std::move(route.recv_rows),
                     std::move(room));
  }

  Task<> collect(PooledVector<Tensor> rows, Route route, PooledVector<Tensor> first,
                 PooledVector<Tensor> sums) override {
    const PooledVector<Tensor> back =
        co_await send_back(group_, std::move(rows), route.layout, route.recv_rows);
    for (size_t i = 0; i < back.size(); ++i) {
      sum_packed(route.layout, back[i], sums[i], first);
      first.clear();
    }
  }

  Task<> collect_quantized(Quantized rows, Route route, PooledVector<Tensor> first, Tensor sums) override {
    PooledVector<Tensor> own = {rows.q_TD, rows.scales_TS};
    const PooledVector<Tensor> back =
        co_await send_back(group_, std::move(own), route.layout, route.recv_rows);
    const Quantized packed = {back[0], back[1]};
    sum_packed(route.layout, packed, sums, first);
  }

 private:
  Group& group_;
};

}  // namespace

int64_t Route::received() const { return std::accumulate(recv_rows.begin(), recv_rows.end(), int64_t{0}); }

std::unique_ptr<Transfer> direct_transfer(Group& group) { return std::make_unique<Direct>(group); }
std::unique_ptr<Transfer> message_transfer(Group& group) { return std::make_unique<Messages>(group); }

}  // namespace phalanx::ep
