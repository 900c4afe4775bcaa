#include "phalanx/ep/transfer.h"

#include <numeric>

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

class Direct final : public Transfer {
 public:
  explicit Direct(Group& group) : group_(group) {}

  Task<Route> plan(Layout layout) override {
    const auto ranks = static_cast<size_t>(group_.size());
    const auto me = static_cast<size_t>(group_.rank());
    Work gather = group_.all_gather(
        Tensor::of(Shape{static_cast<int64_t>(ranks)}, std::span<const int64_t>(layout.rows)));
    const Tensor all = co_await gather;
    Route route = {std::move(layout), Counts(ranks), Counts(ranks, 0)};
    const int64_t* const from_to = all.data<int64_t>();
    for (size_t s = 0; s < ranks; ++s) route.recv_rows[s] = from_to[s * ranks + me];
    for (size_t r = 0; r < ranks; ++r) {
      for (size_t s = 0; s < me; ++s) route.starts[r] += from_to[s * ranks + r];
    }
    co_return route;
  }

  Task<PooledVector<Tensor>> spread(PooledVector<Tensor> rows, Route route) override {
    PooledVector<Tensor> out;
    for (const Tensor& x : rows) {
      out.push_back(Tensor::empty(x.shape().with_rows(route.received()), x.dtype()));
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

  Task<PooledVector<Tensor>> collect(PooledVector<Tensor> rows, Route route) override {
    for (Tensor& y : rows) y = group_.shareable(std::move(y));
    PooledVector<Tensor> everywhere = co_await peers(rows);
    PooledVector<Tensor> out;
    int64_t bytes = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Tensor& y = rows[i];
      out.push_back(Tensor::empty(y.shape().with_rows(route.layout.tokens()), y.dtype()));
      sum_rows(route.layout, bases(of_tensor(everywhere, i), route.starts), out.back());
      bytes += static_cast<int64_t>(row_bytes(y));
    }
    everywhere.clear();
    Work all_have_read = group_.unshare(bytes * others(route.recv_rows), bytes * others(route.layout.rows));
    co_await all_have_read;
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
    co_return all;
  }

  std::span<const Tensor> of_tensor(const PooledVector<Tensor>& all, size_t i) const {
    const auto ranks = static_cast<size_t>(group_.size());
    return std::span(all).subspan(i * ranks, ranks);
  }

  // Of rows to or from each rank, those of other ranks.
  int64_t others(const Counts& rows) const {
    return std::accumulate(rows.begin(), rows.end(), -rows[static_cast<size_t>(group_.rank())]);
  }

  Group& group_;
};

class Messages final : public Transfer {
 public:
  explicit Messages(Group& group) : group_(group) {}

  Task<Route> plan(Layout layout) override {
    const Tensor counts = Tensor::of(Shape{group_.size()}, std::span<const int64_t>(layout.rows));
    const Counts ones(layout.rows.size(), 1);
    Work exchange = group_.all_to_all(counts, ones, ones);
    const Tensor received = co_await exchange;
    const auto rows = received.span<int64_t>();
    Route route = {std::move(layout), Counts(rows.begin(), rows.end()), {}};
    co_return route;
  }

  Task<PooledVector<Tensor>> spread(PooledVector<Tensor> rows, Route route) override {
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
      out.push_back(std::move(received));
    }
    co_return out;
  }

  Task<PooledVector<Tensor>> collect(PooledVector<Tensor> rows, Route route) override {
    const Layout& layout = route.layout;
    const Counts starts = sums_before(layout.rows);
    PooledVector<Work> works;
    for (const Tensor& y : rows) works.push_back(group_.all_to_all(y, route.recv_rows, layout.rows));
    PooledVector<Tensor> out;
    for (Work& work : works) {
      const Tensor back = co_await work;
      out.push_back(Tensor::empty(back.shape().with_rows(layout.tokens()), back.dtype()));
      sum_rows(layout, bases(std::span(&back, 1), starts), out.back());
    }
    co_return out;
  }

 private:
  Group& group_;
};

}  // namespace

int64_t Route::received() const { return std::accumulate(recv_rows.begin(), recv_rows.end(), int64_t{0}); }

std::unique_ptr<Transfer> direct_transfer(Group& group) { return std::make_unique<Direct>(group); }
std::unique_ptr<Transfer> message_transfer(Group& group) { return std::make_unique<Messages>(group); }

}  // namespace phalanx::ep
