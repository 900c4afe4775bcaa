#include "phalanx/ep/low_latency.h"

#include <algorithm>

#include "phalanx/ep/low_latency_way.h"

namespace phalanx::ep {
namespace {

using State = LowLatencyTurn::State;

Group own_group(Group& group) {
  PooledVector<int> all;
  for (int r = 0; r < group.size(); ++r) all.push_back(r);
  return group.subgroup(format("{}, low latency", group.name()), all);
}

void check_options(const LowLatencyOptions& o, const ExpertMap& experts, int ranks) {
  if (experts.ranks() != ranks) throw Error("experts of {} ranks for a group of {}", experts.ranks(), ranks);
  if (o.max_tokens < 1 || o.width < 1) {
    throw Error("low latency: max_tokens {} and width {} must be at least 1", o.max_tokens, o.width);
  }
  if (o.max_tokens > 0x7fffffff / ranks) {
    throw Error("low latency: max_tokens {} of {} ranks are more rows than fit 32 bits", o.max_tokens, ranks);
  }
  if (o.width > 0x7fffffff) {
    throw Error("low latency: width {} is more elements of a row than fit 32 bits", o.width);
  }
  if (dtype_size(o.dtype) == 1 || o.dtype == DType::i32 || o.dtype == DType::i64) {
    throw Error("low latency: dtype {}, expected bf16, f16, f32 or f64", dtype_name(o.dtype));
  }
  if (o.fp8 && o.dtype == DType::f64) throw Error("low latency: rows of f64 are not sent in FP8");
  if (o.mask_after.count() < 0 || o.mask_after > std::chrono::hours(24)) {
    throw Error("low latency: mask_after {} ms, not 0 to a day", o.mask_after.count());
  }
}

// All ranks have the same sizes.
void check_alike(Group& group, const ExpertMap& experts, const LowLatencyOptions& o) {
  PooledVector<int64_t> mine = {o.max_tokens, o.width, static_cast<int64_t>(o.dtype),
                                o.fp8 ? static_cast<int64_t>(*o.fp8) : -1, o.mask_after.count()};
  for (int r = 0; r < experts.ranks(); ++r) mine.push_back(experts.count(r));
  const auto n = static_cast<int64_t>(mine.size());
  Work gather = group.all_gather(Tensor::of(Shape{1, n}, std::span<const int64_t>(mine)));
  const Tensor all = gather.wait();
  for (int r = 0; r < group.size(); ++r) {
    if (std::ranges::equal(all.slice(r, r + 1).span<int64_t>(), all.slice(0, 1).span<int64_t>())) continue;
    throw Error(
        "low latency: sizes or experts differ between ranks 0 and {}: [max_tokens, width, dtype, "
        "fp8, mask_after, experts of each rank] are {} and {}",
        r, all.slice(0, 1).span<int64_t>(), all.slice(r, r + 1).span<int64_t>());
  }
}

void expect(const Tensor& t, const char* name, const Shape& shape, DType dtype) {
  if (!t.defined()) throw Error("{} is not given", name);
  if (t.on_cuda()) throw Error("{} is on a GPU; low latency is for CPU ranks", name);
  if (t.dtype() != dtype) {
    throw Error("{} is {}, expected {}", name, dtype_name(t.dtype()), dtype_name(dtype));
  }
  if (t.shape() != shape) throw Error("{} has shape {}, expected {}", name, t.shape(), shape);
}

// [T, K] of existing experts, or −1.
void expect_choices(const Tensor& idx, int64_t tokens, int64_t experts) {
  if (!idx.defined() || idx.shape().rank() != 2) throw Error("topk_idx must be i64 [T, K]");
  expect(idx, "topk_idx", {tokens, idx.dim(1)}, DType::i64);
  const int64_t* const e = idx.data<int64_t>();
  for (int64_t i = 0; i < idx.numel(); ++i) {
    if (e[i] >= -1 && e[i] < experts) continue;
    throw Error("topk_idx[{}, {}] is {}, expected −1 to {}", i / idx.dim(1), i % idx.dim(1), e[i],
                experts - 1);
  }
}

// The sets of what tokens choose; masked ranks' experts get nothing.
void choose(LowLatencyCore& core, LowLatencyTurn& turn, const Tensor& idx) {
  turn.left_out = core.mask.all();
  const TokenSets chosen(turn.chosen_EW);
  chosen.clear();
  for (int64_t i = 0; i < idx.numel(); ++i) {
    const int64_t e = idx.data<int64_t>()[i];
    if (e < 0 || turn.left_out[static_cast<size_t>(core.experts.owner(e))]) continue;
    chosen.add(e, i / idx.dim(1));
  }
}

// A combine sums what the dispatch has sent.
void expect_chosen(LowLatencyCore& core, const LowLatencyTurn& turn, const Tensor& idx) {
  const TokenSets chosen(turn.chosen_EW);
  for (int64_t i = 0; i < idx.numel(); ++i) {
    const int64_t e = idx.data<int64_t>()[i];
    if (e < 0 || chosen.has(e, i / idx.dim(1))) continue;
    if (turn.left_out[static_cast<size_t>(core.experts.owner(e))]) continue;
    throw Error("topk_idx[{}, {}] is {}, to which dispatch #{} did not send that token", i / idx.dim(1),
                i % idx.dim(1), e, turn.number);
  }
}

// The live result of a handle.
LowLatencyTurn& live(LowLatencyCore& core, const LowLatencyHandle& handle) {
  if (handle.number >= 0) {
    LowLatencyTurn& turn = core.turn(handle.number);
    if (turn.number == handle.number && turn.state != State::free && turn.state != State::returned)
      return turn;
  }
  throw Error("handle of dispatch #{}: its result is combined already, or was never made", handle.number);
}

}  // namespace

LowLatencyBuffer::LowLatencyBuffer(Group& group, ExpertMap experts, const LowLatencyOptions& options)
    : group_(own_group(group)) {
  check_options(options, experts, group.size());
  check_alike(group_, experts, options);
  core_ = std::make_unique<LowLatencyCore>(LowLatencyCore{.group = group_,
                                                          .experts = std::move(experts),
                                                          .options = options,
                                                          .mask = RankMask(group_, options.mask_after),
                                                          .turns = {}});
  for (LowLatencyTurn& turn : core_->turns) {
    const Shape rows = {core_->local(), core_->slots(), options.width};
    turn.recv_LMH = Tensor::empty(rows, options.fp8 ? DType::f8e4m3 : options.dtype);
    if (options.fp8) {
      turn.scales_LMS = Tensor::empty({rows[0], rows[1], scale_groups(options.width)}, core_->scales_dtype());
    }
    turn.count_L = Tensor::zeros({core_->local()}, DType::i32);
    turn.source_LM = Tensor::zeros({core_->local(), core_->slots()}, DType::i32);
  }
  way_ = group_.shares_memory() ? direct_low_latency(*core_) : message_low_latency(*core_);
}

LowLatencyBuffer::~LowLatencyBuffer() = default;

LowLatencyDispatched LowLatencyBuffer::dispatch(const Tensor& x, const Tensor& topk_idx,
                                                const LowLatencyStats& stats) {
  const LowLatencyOptions& o = core_->options;
  if (!x.defined() || x.shape().rank() != 2) throw Error("x must be [T, {}]", o.width);
  expect(x, "x", {x.rows(), o.width}, o.dtype);
  if (x.rows() > o.max_tokens) throw Error("x has {} tokens, max_tokens is {}", x.rows(), o.max_tokens);
  expect_choices(topk_idx, x.rows(), core_->experts.experts());
  if (stats.rows_L.defined()) expect(stats.rows_L, "stats.rows", {core_->local()}, DType::i32);
  if (stats.waited_R.defined()) expect(stats.waited_R, "stats.waited", {core_->ranks()}, DType::i64);
  LowLatencyTurn& turn = core_->turn(dispatches_);
  if (turn.state != State::free) {
    throw Error("dispatch #{}: two results are live; combine that of dispatch #{} first, and run its hook",
                dispatches_, turn.number);
  }
  choose(*core_, turn, topk_idx);
  turn.state = State::sent;
  turn.number = dispatches_++;
  turn.tokens = x.rows();
  turn.dispatch_called = turn.combine_called = false;
  const Tensor rows = core_->sent(x);
  const Fingerprint f{.kind = Fingerprint::Kind::low_latency_dispatch, .dtype = o.dtype, .numel = o.width};
  const auto task = [&](Call call) { return way_->dispatch(call, rows, stats, turn.number); };
  Work work = group_.operate(f, task, {}, rows.bytes());
  return {.recv_LMH = turn.recv_LMH,
          .scales_LMS = turn.scales_LMS,
          .count_L = turn.count_L,
          .handle = {.source_LM = turn.source_LM, .range_LR = turn.range_LR, .number = turn.number},
          .hook = Hook(std::move(work), turn.dispatch_called)};
}

Tensor LowLatencyBuffer::combine_buffer(const LowLatencyHandle& handle) const {
  return live(*core_, handle).output_LMH;
}

Hook LowLatencyBuffer::combine(const Tensor& y, const Tensor& topk_idx, const Tensor& weights,
                               const LowLatencyHandle& handle, const Tensor& out, const Tensor& waited) {
  const LowLatencyOptions& o = core_->options;
  LowLatencyTurn& turn = live(*core_, handle);
  if (turn.state != State::received) {
    throw Error("combine of dispatch #{}, whose hook has not run", handle.number);
  }
  expect(y, "y", {core_->local(), core_->slots(), o.width}, o.dtype);
  expect_choices(topk_idx, turn.tokens, core_->experts.experts());
  expect(weights, "weights", topk_idx.shape(), o.dtype == DType::f64 ? DType::f64 : DType::f32);
  expect_chosen(*core_, turn, topk_idx);
  const Shape shape = {turn.tokens, o.width};
  if (out.defined()) expect(out, "out", shape, o.dtype);
  if (waited.defined()) expect(waited, "waited", {core_->ranks()}, DType::i64);
  const Tensor sums = out.defined() ? out : Tensor::empty(shape, o.dtype);
  turn.state = State::returned;
  const Fingerprint f{.kind = Fingerprint::Kind::low_latency_combine, .dtype = o.dtype, .numel = o.width};
  const auto task = [&](Call call) {
    return way_->combine(
        call,
        {.y_LMH = y, .topk_idx_TK = topk_idx, .weights_TK = weights, .out_TH = sums, .waited_R = waited},
        turn.number);
  };
  return Hook(group_.operate(f, task, sums, y.bytes()), turn.combine_called);
}

void LowLatencyBuffer::update_mask(int rank, bool masked) { core_->mask.update(rank, masked); }

Tensor LowLatencyBuffer::query_mask() const {
  const Tensor out = Tensor::zeros({core_->ranks()}, DType::i32);
  for (int r = 0; r < core_->ranks(); ++r) out.data<int32_t>()[r] = core_->mask.masked(r) ? 1 : 0;
  return out;
}

void LowLatencyBuffer::clean_mask() {
  for (int r = 0; r < core_->ranks(); ++r) {
    if (r != core_->rank()) core_->mask.update(r, false);
  }
}

int64_t low_latency_size_hint(int64_t max_tokens, int64_t hidden, int /*ranks*/, int64_t experts) {
  const int64_t scales = 4 * (hidden / 128);
  const int64_t to_expert = 16 + std::max(2 * hidden, hidden + scales);
  const int64_t back = 2 * hidden + scales;
  const int64_t slots = experts * max_tokens;
  const int64_t send = std::max(max_tokens * to_expert, slots * back);
  const int64_t receive = slots * std::max(to_expert, back);
  const int64_t signals = (4 * experts + 127) / 128 * 128;
  return 2 * (send + receive + signals);
}

}  // namespace phalanx::ep
