#include "phalanx/ep/two_level.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/ep/row_places.h"

namespace phalanx::ep {
namespace {

constexpr int kMostOfNode = 63;  // ranks in a mask

// Every n-th rank from `first`, `count` of them.
Group part_of(Group& group, const char* name, int first, int step, int count) {
  std::vector<int> members(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) members[static_cast<size_t>(i)] = first + i * step;
  return group.subgroup(format("{} {}", group.name(), name), members);
}

Layout empty_layout(int64_t tokens, int64_t pairs, int64_t bins) {
  return {Tensor::empty({tokens + 1}, DType::i64), Tensor::empty({pairs}, DType::i32),
          Tensor::empty({pairs}, DType::i64), Counts(static_cast<size_t>(bins), 0)};
}

// Adds a pair behind those that are there.
void add_pair(Layout& layout, int64_t& pairs, int32_t bin) {
  layout.rank_P.data<int32_t>()[pairs] = bin;
  layout.row_P.data<int64_t>()[pairs] = layout.rows[static_cast<size_t>(bin)]++;
  ++pairs;
}

// The pairs (token, node) of pairs (token, rank), and for each which of the node's ranks, as bits.
struct ByNode {
  Layout layout;
  Tensor masks_P;  // i64
};

ByNode by_node(const Layout& by_rank, int nodes, int of_node) {
  const int64_t tokens = by_rank.tokens();
  ByNode out = {empty_layout(tokens, by_rank.pairs(), nodes), Tensor::zeros({by_rank.pairs()}, DType::i64)};
  int64_t pairs = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t first = pairs;
    out.layout.first_T.data<int64_t>()[t] = first;
    for (const int32_t rank : Pairs(by_rank, t).ranks) {
      const int32_t node = rank / of_node;
      if (pairs == first || out.layout.rank_P.data<int32_t>()[pairs - 1] != node) {
        add_pair(out.layout, pairs, node);
      }
      out.masks_P.data<int64_t>()[pairs - 1] |= int64_t{1} << (rank % of_node);
    }
  }
  out.layout.first_T.data<int64_t>()[tokens] = pairs;
  return out;
}

// One number for each pair, as rows behind one another by node.
Tensor by_row(const Layout& layout, const Tensor& of_pair) {
  const Tensor out = Tensor::empty({layout.pairs()}, DType::i64);
  const Counts starts = sums_before(layout.rows);
  for (int64_t p = 0; p < layout.pairs(); ++p) {
    const auto node = static_cast<size_t>(layout.rank_P.data<int32_t>()[p]);
    out.data<int64_t>()[starts[node] + layout.row_P.data<int64_t>()[p]] = of_pair.data<int64_t>()[p];
  }
  return out;
}

// Where rows go that were received from the nodes in turn, each for the ranks of its mask.
Layout onward(const Tensor& masks_F, const Counts& from_node, int of_node) {
  const auto masks = masks_F.span<const int64_t>();
  int64_t most = 0;
  for (const int64_t m : masks) most += std::popcount(static_cast<uint64_t>(m));
  Layout out = empty_layout(std::ssize(masks), most, std::ssize(from_node) * of_node);
  int64_t pairs = 0;
  int64_t row = 0;
  for (size_t n = 0; n < from_node.size(); ++n) {
    for (int64_t i = 0; i < from_node[n]; ++i, ++row) {
      out.first_T.data<int64_t>()[row] = pairs;
      for (int r = 0; r < of_node; ++r) {
        if (masks[static_cast<size_t>(row)] >> r & 1) {
          add_pair(out, pairs, static_cast<int32_t>(n) * of_node + r);
        }
      }
    }
  }
  out.first_T.data<int64_t>()[row] = pairs;
  return out;
}

// Of the rank that has most, the bytes of its tokens' rows.
int64_t most_bytes(std::span<const Statement> of_ranks) {
  int64_t most = 0;
  for (const Statement& s : of_ranks) most = std::max(most, s.tokens * (s.row_bytes + s.scale_bytes));
  return most;
}

bool on_one_level(const Route& route) { return route.relay.starts.empty(); }

class TwoLevel final : public Transfer {
 public:
  TwoLevel(Group& group, int of_node, int64_t above)
      : nodes_(group.size() / of_node),
        of_node_(of_node),
        first_of_node_(group.rank() / of_node * of_node),
        above_(above),
        node_(part_of(group, "node", first_of_node_, 1, of_node)),
        rail_(part_of(group, "rail", group.rank() % of_node, of_node, nodes_)),
        flat_(message_transfer(group)) {
    if (!node_.shares_memory()) throw Error("the ranks of {} do not share memory", node_.name());
  }

  bool takes_any_order() const override { return false; }
  LinkBytes sent() const override {
    return {.inside = node_.traffic().sent + messages_inside_,
            .between = rail_.traffic().sent + flat_->sent().between - messages_inside_};
  }

  Task<Plan> plan(Layout layout, Statement own) override {
    Plan plan = co_await flat_->plan(std::move(layout), own);
    if (most_bytes(plan.statements) <= above_) co_return plan;
    Route& route = plan.route;
    ByNode out = by_node(route.layout, nodes_, of_node_);
    const Tensor rows = Tensor::of(Shape{nodes_}, std::span<const int64_t>(out.layout.rows));
    const Counts ones(static_cast<size_t>(nodes_), 1);
    Work counts = rail_.all_to_all(rows, ones, ones);
    const Tensor from_nodes = co_await counts;
    const auto from = from_nodes.span<int64_t>();
    route.relay.recv_rows.assign(from.begin(), from.end());
    Work exchange = rail_.all_to_all(by_row(out.layout, out.masks_P), out.layout.rows, route.relay.recv_rows);
    const Tensor masks = co_await exchange;
    route.relay.onward = onward(masks, route.relay.recv_rows, of_node_);
    route.relay.to_nodes = std::move(out.layout);
    const Shape one = {1, std::ssize(route.recv_rows)};
    Work gather = node_.all_gather(Tensor::of(one, std::span<const int64_t>(route.recv_rows)));
    const Tensor recv_rows_GR = co_await gather;
    route.relay.starts = starts_of(recv_rows_GR);
    co_return plan;
  }

  PooledVector<Tensor> room(const PooledVector<Tensor>& like, int64_t rows) const override {
    return shareable_rows(node_, like, rows);
  }

  Task<> spread(PooledVector<Tensor> rows, Route route, PooledVector<Tensor> room) override {
    if (on_one_level(route)) {
      messages_inside_ += bytes_of_row(rows) * of_node_mates(route.layout.rows);
      co_await flat_->spread(std::move(rows), std::move(route), std::move(room));
      co_return;
    }
    const Relay& relay = route.relay;
    const PooledVector<Tensor> passing = new_rows(rows, relay.onward.tokens());
    co_await send_rows(rail_, std::move(rows), relay.to_nodes, relay.recv_rows, passing);
    PooledVector<Tensor> everywhere = co_await everyones(node_, std::move(room));
    for (size_t i = 0; i < passing.size(); ++i) {
      spread_rows(relay.onward, passing[i], places(everywhere, i, relay.starts));
    }
    everywhere.clear();
    Work all_have_written = node_.unshare(bytes_onward(passing, route), bytes_received(passing, route));
    co_await all_have_written;
  }

  Task<> collect(PooledVector<Tensor> rows, Route route, PooledVector<Tensor> first,
                 PooledVector<Tensor> sums) override {
    if (on_one_level(route)) {
      messages_inside_ += bytes_of_row(rows) * of_node_mates(route.recv_rows);
      co_await flat_->collect(std::move(rows), std::move(route), std::move(first), std::move(sums));
      co_return;
    }
    const Relay& relay = route.relay;
    make_shareable(node_, rows);
    PooledVector<Tensor> everywhere = co_await everyones(node_, rows);
    PooledVector<Tensor> of_node = new_rows(rows, relay.onward.tokens());
    for (size_t i = 0; i < rows.size(); ++i) {
      sum_rows(relay.onward, places(everywhere, i, relay.starts), of_node[i]);
    }
    everywhere.clear();
    Work all_have_read = node_.unshare(bytes_received(rows, route), bytes_onward(rows, route));
    co_await all_have_read;
    const PooledVector<Tensor> back =
        co_await send_back(rail_, std::move(of_node), relay.to_nodes, relay.recv_rows);
    for (size_t i = 0; i < back.size(); ++i) {
      sum_packed(relay.to_nodes, back[i], sums[i], first);
      first.clear();
    }
  }

  // Inside the node as they are; sums are quantised again.
  Task<> collect_quantized(Quantized rows, Route route, PooledVector<Tensor> first, Tensor sums) override {
    PooledVector<Tensor> own = {rows.q_TD, rows.scales_TS};
    if (on_one_level(route)) {
      messages_inside_ += bytes_of_row(own) * of_node_mates(route.recv_rows);
      own.clear();
      co_await flat_->collect_quantized(std::move(rows), std::move(route), std::move(first), std::move(sums));
      co_return;
    }
    const Relay& relay = route.relay;
    make_shareable(node_, own);
    PooledVector<Tensor> everywhere = co_await everyones(node_, own);
    const Tensor of_node = Tensor::empty(sums.shape().with_rows(relay.onward.tokens()), sums.dtype());
    const PooledVector<std::byte*> q = places(everywhere, 0, relay.starts);
    const PooledVector<std::byte*> scales = places(everywhere, 1, relay.starts);
    sum_quantized_rows(relay.onward, {q, scales}, of_node);
    everywhere.clear();
    Work all_have_read = node_.unshare(bytes_received(own, route), bytes_onward(own, route));
    co_await all_have_read;
    const Quantized narrow = quantize(of_node, ScaleFormat::f32);
    PooledVector<Tensor> sent = {narrow.q_TD, narrow.scales_TS};
    const PooledVector<Tensor> back =
        co_await send_back(rail_, std::move(sent), relay.to_nodes, relay.recv_rows);
    const Quantized packed = {back[0], back[1]};
    sum_packed(relay.to_nodes, packed, sums, first);
  }

 private:
  // [nodes · G]: before rows from node n that pass through this rank, a rank of the node receives those of
  // all lower ranks. recv_rows_GR: what each rank of this node receives from every rank.
  Counts starts_of(const Tensor& recv_rows_GR) const {
    Counts out;
    for (int n = 0; n < nodes_; ++n) {
      for (int r = 0; r < of_node_; ++r) {
        const int64_t* const recv = recv_rows_GR.data<int64_t>() + r * recv_rows_GR.dim(1);
        out.push_back(std::accumulate(recv, recv + n * of_node_ + node_.rank(), int64_t{0}));
      }
    }
    return out;
  }

  // Of the i-th tensor, where the rows of each (node, rank of this node) begin.
  PooledVector<std::byte*> places(const PooledVector<Tensor>& everywhere, size_t i,
                                  const Counts& starts) const {
    const std::span<const Tensor> of_rank = of_tensor(everywhere, i, of_node_);
    PooledVector<Tensor> of_bin;
    for (int n = 0; n < nodes_; ++n) of_bin.insert(of_bin.end(), of_rank.begin(), of_rank.end());
    return bases(of_bin, starts);
  }

  // Of rows that pass through this rank, the bytes to other ranks of the node; and of rows that it receives,
  // those that pass through others.
  int64_t bytes_onward(const PooledVector<Tensor>& rows, const Route& route) const {
    int64_t pairs = 0;
    for (size_t bin = 0; bin < route.relay.onward.rows.size(); ++bin) {
      const bool other = static_cast<int>(bin) % of_node_ != node_.rank();
      if (other) pairs += route.relay.onward.rows[bin];
    }
    return pairs * bytes_of_row(rows);
  }
  int64_t bytes_received(const PooledVector<Tensor>& rows, const Route& route) const {
    int64_t n = 0;
    for (size_t source = 0; source < route.recv_rows.size(); ++source) {
      if (static_cast<int>(source) % of_node_ != node_.rank()) n += route.recv_rows[source];
    }
    return n * bytes_of_row(rows);
  }

  // Of a count for each rank, those of the others of this node.
  int64_t of_node_mates(const Counts& of_rank) const {
    int64_t n = 0;
    for (int i = 0; i < of_node_; ++i) {
      if (i != node_.rank()) n += of_rank[static_cast<size_t>(first_of_node_ + i)];
    }
    return n;
  }

  int nodes_;
  int of_node_;
  int first_of_node_;
  int64_t above_;
  Group node_;  // this one
  Group rail_;  // the ranks with this one's place in their nodes
  std::unique_ptr<Transfer> flat_;
  int64_t messages_inside_ = 0;  // bytes of rows that went to this node's ranks on one level
};

}  // namespace

std::unique_ptr<Transfer> two_level_transfer(Group& group, int ranks_of_node, int64_t above) {
  if (ranks_of_node < 1 || ranks_of_node > kMostOfNode || group.size() % ranks_of_node != 0) {
    throw Error("{} ranks are not nodes of {}: a divisor of them, at most {}", group.size(), ranks_of_node,
                kMostOfNode);
  }
  return std::make_unique<TwoLevel>(group, ranks_of_node, above);
}

}  // namespace phalanx::ep
