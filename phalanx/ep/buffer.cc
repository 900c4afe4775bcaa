#include "phalanx/ep/buffer.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/ep/row_places.h"
#include "phalanx/ops/keep_experts.h"

namespace phalanx::ep {
namespace {

int64_t total(const PooledVector<int64_t>& rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

ExpertMap one_a_rank(int64_t experts) {
  return ExpertMap(std::vector<int64_t>(static_cast<size_t>(experts), 1));
}

uint64_t next_number() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

Way way_of(const Group& group, Phase phase, int of_node) {
  if (group.shares_memory()) return Way::direct;
  if (of_node < 2 || phase == Phase::decode) return Way::messages;
  return phase == Phase::prefill ? Way::two_level : Way::by_size;
}

std::unique_ptr<Transfer> transfer_of(Group& group, const BufferOptions& o) {
  const int of_node = o.ranks_of_node == kFindNodes ? group.ranks_of_node() : o.ranks_of_node;
  const Way way = o.way == Way::automatic ? way_of(group, o.phase, of_node) : o.way;
  if (way == Way::two_level) return two_level_transfer(group, of_node);
  if (way == Way::by_size) return two_level_transfer(group, of_node, kTwoLevelsPay);
  if (way == Way::messages) return message_transfer(group);
  if (!group.shares_memory()) throw Error("the ranks of {} do not share memory", group.name());
  return direct_transfer(group);
}

// Global expert numbers become those of `rank`'s, or −1, as in all rows behind the live ones.
void keep_local(const Rows& topk_idx, const ExpertMap& experts, int rank) {
  const int64_t live = topk_idx.count();
  keep_experts(topk_idx.data.slice(0, live), experts.first(rank), experts.count(rank));
  std::ranges::fill(topk_idx.data.slice(live, topk_idx.capacity()).span<int64_t>(), -1);
}

// A token's rows, which stand together and are as many as its experts here, each keep one of those, in turn.
void keep_one_slot(const Rows& topk_idx) {
  const int64_t k = topk_idx.data.dim(1);
  int64_t* row = topk_idx.data.data<int64_t>();
  for (int64_t left = topk_idx.count(); left > 0;) {
    const int64_t same = k - std::count(row, row + k, -1);
    for (int64_t i = 0; i < same; ++i, row += k) {
      int64_t nth = 0;
      for (int64_t& e : std::span(row, static_cast<size_t>(k))) {
        if (e >= 0 && nth++ != i) e = -1;
      }
    }
    left -= same;
  }
}

void zero_without_expert(const Tensor& weights, const Tensor& topk_idx) {
  visit_float(weights.dtype(), [&](auto t) {
    auto* const w = weights.data<decltype(t)>();
    const auto idx = topk_idx.span<const int64_t>();
    for (size_t i = 0; i < idx.size(); ++i) {
      if (idx[i] < 0) w[i] = 0;
    }
  });
}

// i64 [tokens, 2]: the rank, and the token.
Tensor numbered(int64_t tokens, int rank) {
  Tensor out = Tensor::empty({tokens, 2}, DType::i64);
  for (int64_t t = 0; t < tokens; ++t) {
    out.data<int64_t>()[2 * t] = rank;
    out.data<int64_t>()[2 * t + 1] = t;
  }
  return out;
}

// The rows that live of a tensor with more.
Rows live_rows(const Tensor& data, int64_t count) {
  return {data, Tensor::of(Shape{1}, std::span<const int64_t>(&count, 1))};
}

void check_rows(const Tensor& t, const char* name) {
  if (!t.defined() || t.on_cuda() || t.shape().rank() == 0) {
    throw Error("{} is not a tensor of rows on the CPU", name);
  }
}

void check_given(const Tensor& x, const Tensor& scales) {
  check_rows(x, "cached dispatch: x");
  if (scales.defined()) check_rows(scales, "cached dispatch: scales");
}

// How many rows a caller says that there are.
int64_t count_given(const Rows& y) {
  check_rows(y.data, "combine: y");
  const Tensor& live = y.live;
  if (!live.defined() || live.on_cuda() || live.dtype() != DType::i64 || live.shape() != Shape{1}) {
    throw Error("combine: the number of live rows is not an i64 [1] on the CPU");
  }
  const int64_t n = live.data<int64_t>()[0];
  if (n < 0 || n > y.capacity()) throw Error("combine: {} live rows of {}", n, y.capacity());
  return n;
}

// Tensors, some undefined, as a list of those that are defined, and back.
PooledVector<Tensor> defined(std::initializer_list<Tensor> tensors) {
  PooledVector<Tensor> out;
  for (const Tensor& t : tensors) {
    if (t.defined()) out.push_back(t);
  }
  return out;
}
Tensor take_if(bool there, PooledVector<Tensor>& list) {
  if (!there) return {};
  Tensor out = std::move(list.front());
  list.erase(list.begin());
  return out;
}

}  // namespace

Buffer::Buffer(Group& ep, int experts, BufferOptions options)
    : Buffer(ep, ExpertMap::even(experts, ep.size()), options) {}

Buffer::Buffer(Group& ep, ExpertMap experts, BufferOptions options)
    : group_(ep),
      transfer_(transfer_of(ep, options)),
      slices_(options.etp),
      experts_(std::move(experts)),
      singles_(one_a_rank(ep.rank() < experts_.ranks() ? experts_.count(ep.rank()) : 0)),
      checked_(options.checked),
      number_(next_number()),
      thread_(std::this_thread::get_id()) {
  if (experts_.ranks() != ep.size()) {
    throw Error("experts of {} ranks for a group of {}", experts_.ranks(), ep.size());
  }
}

void Buffer::check_thread() const {
  if (std::this_thread::get_id() == thread_) return;
  throw Error("a buffer of rank {} is used by another thread than the one that made it", group_.rank());
}

void Buffer::check_handle(const Handle& h, const char* call) const {
  check_thread();
  if (h.buffer != number_) throw Error("{}: the handle is not of a dispatch of this buffer", call);
}

void Buffer::set_replicas(std::shared_ptr<const ReplicaMap> map) {
  if (map && map->slots() != experts_) throw Error("replicas of other slots than the buffer's");
  replicas_ = std::move(map);
}

Task<Tensor> Buffer::slots_chosen(Tensor topk_idx) {
  Work gather = group_.all_gather(count_choices(topk_idx, replicas_->experts()));
  const Tensor tokens_RE = co_await gather;
  co_return choose_replicas(topk_idx, *replicas_, tokens_RE, group_.rank());
}

Task<Dispatched> Buffer::dispatch(Tensor x, Tensor topk_idx, Tensor weights) {
  Tokens tokens = {std::move(x), std::move(topk_idx), std::move(weights)};
  return dispatch(std::move(tokens), DispatchOptions());
}

Task<Dispatched> Buffer::dispatch(Tokens tokens, DispatchOptions options) {
  check_thread();
  std::string why;
  if (options.order != PairOrder::by_rank && !transfer_->takes_any_order()) {
    why = "on two levels rows are summed by rank";
  }
  const Statement own = examine(tokens, options, choosable(), checked_, &why);
  const bool sound = own.fault == Statement::Fault::none;
  Tensor choices = sound ? tokens.topk_idx_TK : Tensor::empty({0, 1}, DType::i64);
  if (replicas_) choices = co_await slots_chosen(choices);
  Plan plan = co_await transfer_->plan(layout_of(choices, experts_, options.order), own);
  agree(plan.statements, group_.rank(), why);

  Dispatched out;
  Handle& h = out.handle;
  h.route = std::move(plan.route);
  h.buffer = number_;
  h.slice_rows = co_await slices_.count(h.route.received());
  h.capacity = std::max(options.worst_rows, total(h.slice_rows));
  const Tensor sources = options.sources ? numbered(tokens.x_TD.rows(), group_.rank()) : Tensor();
  PooledVector<Tensor> rows = defined({choices, tokens.weights_TK, sources, tokens.x_TD, tokens.scales_TS});
  PooledVector<Tensor> all = transfer_->room(rows, h.capacity);
  if (options.rows_later) rows = defined({choices, tokens.weights_TK, sources});
  co_await move(std::move(rows), h, all);
  out.topk_idx_RK = live_rows(take_if(true, all), total(h.slice_rows));
  out.weights_RK = take_if(tokens.weights_TK.defined(), all);
  out.sources_R2 = take_if(options.sources, all);
  out.x_RD = {take_if(true, all), out.topk_idx_RK.live};
  out.scales_RS = take_if(tokens.scales_TS.defined(), all);
  keep_local(out.topk_idx_RK, experts_, group_.rank());
  if (options.order == PairOrder::every_slot) keep_one_slot(out.topk_idx_RK);
  if (out.weights_RK.defined()) zero_without_expert(out.weights_RK, out.topk_idx_RK.data);
  out.expert_rows = count_expert_rows(out.topk_idx_RK, local_experts(), options.expert_alignment);
  if (options.expand) expand(out, options.rows_later);
  co_return out;
}

// Compact rows become expanded ones, unless they come later; the handle remembers how.
void Buffer::expand(Dispatched& d, bool rows_later) const {
  Handle& h = d.handle;
  const Expansion& e = h.expansion.emplace(expansion_of(d.topk_idx_RK.data, singles_, d.expert_rows));
  if (d.weights_RK.defined()) d.weights_RK = expand_slots(e, d.weights_RK);
  const Redispatched compact = {d.x_RD, d.scales_RS};
  const Redispatched expanded = room(compact.x_RD.data, compact.scales_RS, h);
  d.x_RD = expanded.x_RD;
  d.scales_RS = expanded.scales_RS;
  if (rows_later) return;
  expand_rows(e, compact.x_RD.data, d.x_RD.data);
  if (d.scales_RS.defined()) expand_rows(e, compact.scales_RS, d.scales_RS);
}

// Compact rows of all ranks of etp.
Task<> Buffer::move(PooledVector<Tensor> rows, Handle h, PooledVector<Tensor> room) {
  if (slices_.alone()) {
    co_await transfer_->spread(std::move(rows), std::move(h.route), std::move(room));
    co_return;
  }
  PooledVector<Tensor> own = transfer_->room(rows, h.route.received());
  co_await transfer_->spread(std::move(rows), std::move(h.route), own);
  co_await slices_.gather(std::move(own), std::move(h.slice_rows), std::move(room));
}

Task<Rows> Buffer::dispatch(Tensor x, Handle handle) {
  Redispatched out = co_await dispatch(std::move(x), Tensor(), std::move(handle));
  co_return out.x_RD;
}

Task<Redispatched> Buffer::dispatch(Tensor x, Tensor scales, Handle h) {
  Redispatched out = room(x, scales, h);
  co_await dispatch_into(std::move(x), std::move(scales), std::move(h), out);
  co_return out;
}

Redispatched Buffer::room(const Tensor& x, const Tensor& scales, const Handle& h) const {
  check_handle(h, "cached dispatch");
  check_given(x, scales);
  PooledVector<Tensor> rows = h.expansion ? new_rows(defined({x, scales}), h.expansion->rows())
                                          : transfer_->room(defined({x, scales}), h.capacity);
  Redispatched out;
  const Tensor data = take_if(true, rows);
  out.x_RD = h.expansion ? all_rows(data) : live_rows(data, total(h.slice_rows));
  out.scales_RS = take_if(scales.defined(), rows);
  return out;
}

Task<> Buffer::dispatch_into(Tensor x, Tensor scales, Handle h, Redispatched room) {
  check_handle(h, "cached dispatch");
  check_given(x, scales);
  PooledVector<Tensor> rows = defined({x, scales});
  const PooledVector<Tensor> to = defined({room.x_RD.data, room.scales_RS});
  check_room(rows, to, h);
  if (!h.expansion) {
    co_await move(std::move(rows), std::move(h), to);
    co_return;
  }
  const PooledVector<Tensor> compact = transfer_->room(rows, h.capacity);
  co_await move(std::move(rows), h, compact);
  for (size_t i = 0; i < to.size(); ++i) expand_rows(*h.expansion, compact[i], to[i]);
}

// Error: rows are not of the handle's tokens, or have other places.
void Buffer::check_room(const PooledVector<Tensor>& rows, const PooledVector<Tensor>& room,
                        const Handle& h) const {
  const int64_t tokens = h.route.layout.tokens();
  const int64_t places = h.expansion ? h.expansion->rows() : h.capacity;
  if (rows.size() != room.size()) {
    throw Error("cached dispatch: {} tensors, room for {}: rows, and scales where there are some",
                rows.size(), room.size());
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].rows() != tokens) {
      throw Error("cached dispatch: {} rows, the handle's dispatch had {} tokens", rows[i].rows(), tokens);
    }
    const Shape wanted = rows[i].shape().with_rows(places);
    if (room[i].shape() == wanted && room[i].dtype() == rows[i].dtype()) continue;
    throw Error("cached dispatch: room of {} {}, wanted is {} {}", dtype_name(room[i].dtype()),
                room[i].shape(), dtype_name(rows[i].dtype()), wanted);
  }
}

Task<Combined> Buffer::combine(Rows y, Handle handle, Tensor weights) {
  CombineOptions options = {.weights = std::move(weights)};
  return combine(std::move(y), std::move(handle), std::move(options));
}

Task<Combined> Buffer::combine(Rows y, Handle h, CombineOptions options) {
  check_combine(y, h, options);
  const Combined out = sums_for(y.data, options.weights, h, options.into);
  PooledVector<Tensor> parts = compact(y.data, options.weights, h);
  PooledVector<Tensor> own = co_await slices_.reduce(std::move(parts), h.slice_rows);
  PooledVector<Tensor> sums = defined({out.x_TD, out.weights_TK});
  if (options.quantize) {
    Quantized rows = quantize(own[0], ScaleFormat::f32);
    co_await transfer_->collect_quantized(std::move(rows), h.route, std::move(options.bias), out.x_TD);
    own.erase(own.begin());
    sums.erase(sums.begin());
    options.bias.clear();
  }
  if (!own.empty()) {
    co_await transfer_->collect(std::move(own), std::move(h.route), std::move(options.bias), std::move(sums));
  }
  co_return out;
}

Combined sums_for(const Tensor& y, const Tensor& weights, const Handle& h, Combined into) {
  const int64_t tokens = h.route.layout.tokens();
  const auto expect = [](Tensor& sums, const Shape& shape, DType dtype) {
    if (!sums.defined()) sums = Tensor::empty(shape, dtype);
    if (sums.shape() == shape && sums.dtype() == dtype) return;
    throw Error("combine: sums are {} {}, and are to go into {} {}", dtype_name(dtype), shape,
                dtype_name(sums.dtype()), sums.shape());
  };
  expect(into.x_TD, y.shape().with_rows(tokens), y.dtype());
  if (!weights.defined()) return {into.x_TD, Tensor()};
  const int64_t slots = h.expansion ? h.expansion->topk_idx_RK.dim(1) : weights.dim(1);
  expect(into.weights_TK, {tokens, slots}, weights.dtype());
  return into;
}

void Buffer::check_combine(const Rows& y, const Handle& h, const CombineOptions& o) const {
  check_handle(h, "combine");
  const int64_t live = total(h.slice_rows);
  const int64_t rows = h.expansion ? h.expansion->rows() : live;
  const int64_t given = count_given(y);
  if (given < rows || (h.expansion && given != rows)) {
    throw Error("combine: {} rows, {} were dispatched", given, rows);
  }
  const Tensor& w = o.weights;
  const bool f32_or_f64 = w.dtype() == DType::f32 || w.dtype() == DType::f64;
  if (w.defined() && (w.shape().rank() != (h.expansion ? 1 : 2) || w.rows() < rows || !f32_or_f64)) {
    throw Error("combine: weights are {} {} for {} rows", dtype_name(w.dtype()), w.shape(), rows);
  }
  if (o.bias.size() > 2) throw Error("combine: {} biases, at most 2 are added", o.bias.size());
  const Shape tokens = y.data.shape().with_rows(h.route.layout.tokens());
  for (const Tensor& b : o.bias) {
    if (b.shape() == tokens && b.dtype() == y.data.dtype()) continue;
    throw Error("combine: a bias is {} {}, the sums are {} {}", dtype_name(b.dtype()), b.shape(),
                dtype_name(y.data.dtype()), tokens);
  }
  const DType dtype = y.data.dtype();
  const bool narrow = dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
  if (!narrow && (o.quantize || dtype != DType::f64)) {
    throw Error("combine: rows are {}{}", dtype_name(dtype), o.quantize ? ", to be quantized" : "");
  }
  if (o.quantize && y.data.shape().rank() != 2) {
    throw Error("combine: rows to be quantized are {}, not [rows, width]", y.data.shape());
  }
}

// Rows and weights, one for each (token, rank) again.
PooledVector<Tensor> Buffer::compact(const Tensor& y, const Tensor& weights, const Handle& h) const {
  if (h.expansion) {
    const Tensor slots = weights.defined() ? reduce_slots(*h.expansion, weights) : Tensor();
    return defined({reduce_rows(*h.expansion, y), slots});
  }
  const int64_t rows = total(h.slice_rows);
  return defined({y.slice(0, rows), weights.defined() ? weights.slice(0, rows) : Tensor()});
}

}  // namespace phalanx::ep
