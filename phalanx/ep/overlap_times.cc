#include "phalanx/ep/overlap_times.h"

#include <array>
#include <cstring>

#include "phalanx/base/beside.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/permute.h"
#include "phalanx/ops/swiglu.h"

namespace phalanx::ep {

// T tokens, D width, K top-k, E local experts, F expert width, R received rows

namespace {

// The forward of model/moe.cc behind its router, in parts.
class ExpertLayer {
 public:
  ExpertLayer(Group& group, const OverlapOptions& o)
      : buffer_(group, o.shape.experts),
        gate_up_E2FD_(weights(2 * o.expert_width, o.shape.width, o.shape.dtype)),
        down_EDF_(weights(o.shape.width, o.expert_width, o.shape.dtype)) {}

  Task<Dispatched> dispatch(Tokens tokens) {
    const TracePart part("", "dispatch", TracePhase::forward);
    DispatchOptions options;
    co_return co_await buffer_.dispatch(std::move(tokens), options);
  }

  Rows experts(const Dispatched& in) const {
    const TracePart part("", "experts", TracePhase::forward);
    const ExpertOrder order = order_by_expert(in.topk_idx_RK, buffer_.local_experts());
    const Rows x = permute(in.x_RD, order);
    const Rows h = grouped_matmul_nt(x, gate_up_E2FD_, order.offsets);
    const Rows y = grouped_matmul_nt(swiglu(h), down_EDF_, order.offsets);
    return unpermute(y, order, in.weights_RK, in.x_RD);
  }

  Task<Tensor> combine(Rows y_RD, Handle handle) {
    const TracePart part("", "combine", TracePhase::forward);
    const Combined out = co_await buffer_.combine(std::move(y_RD), std::move(handle), Tensor());
    co_return out.x_TD;
  }

  Task<Tensor> forward(Tokens tokens) {
    const Dispatched in = co_await dispatch(std::move(tokens));
    const Rows y_RD = experts(in);
    co_return co_await combine(y_RD, in.handle);
  }

 private:
  Tensor weights(int64_t rows, int64_t columns, DType dtype) const {
    const int64_t experts = buffer_.local_experts();
    const auto seed = static_cast<uint64_t>(buffer_.experts().experts() + rows);
    return random_rows(experts * rows, columns, dtype, seed).view({experts, rows, columns});
  }

  Buffer buffer_;
  Tensor gate_up_E2FD_;
  Tensor down_EDF_;
};

using Microbatches = std::array<Tokens, 2>;
using Results = std::array<Tensor, 2>;

Tokens microbatch(const TimesShape& s, int number) {
  const auto seed = static_cast<uint64_t>(number);
  return {.x_TD = random_rows(s.tokens, s.width, s.dtype, seed),
          .topk_idx_TK = random_choices(s.tokens, s.top_k, s.experts, seed),
          .weights_TK = random_rows(s.tokens, s.top_k, s.dtype, seed)};
}

Results sequential(ExpertLayer& layer, const Microbatches& batches) {
  const TracePart part("", "sequential", TracePhase::none);
  label_microbatches(0, -1);
  const Tensor first = run(layer.forward(batches[0]));
  label_microbatches(1, -1);
  const Tensor second = run(layer.forward(batches[1]));
  label_microbatches(-1, -1);
  return {first, second};
}

Results overlapped(ExpertLayer& layer, const Microbatches& batches) {
  const TracePart part("", "overlapped", TracePhase::none);
  label_microbatches(0, 1);
  const auto [first, second] = run(overlap(layer.forward(batches[0]), beside(layer.forward(batches[1]))));
  label_microbatches(-1, -1);
  return {first, second};
}

void check_equal(const Results& a, const Results& b) {
  for (size_t m = 0; m < a.size(); ++m) {
    const bool equal = a[m].bytes() == b[m].bytes() && std::memcmp(a[m].raw(), b[m].raw(), a[m].bytes()) == 0;
    PHX_CHECK(equal, "microbatch {} has other results where it overlaps", m);
  }
}

}  // namespace

std::vector<OperationTime> measure_overlap(Group& group, const OverlapOptions& options, TraceRing* ring) {
  ExpertLayer layer(group, options);
  const Microbatches batches = {microbatch(options.shape, 2 * group.rank()),
                                microbatch(options.shape, 2 * group.rank() + 1)};
  const Dispatched in = run(layer.dispatch(batches[0]));
  const Rows y_RD = layer.experts(in);
  Results one_by_one;
  Results in_turns;
  const std::array<std::function<void()>, 5> operations = {
      [&] { run(layer.dispatch(batches[0])); }, [&] { layer.experts(in); },
      [&] { run(layer.combine(y_RD, in.handle)); }, [&] { one_by_one = sequential(layer, batches); },
      [&] { in_turns = overlapped(layer, batches); }};
  const std::vector<double> s = median_times(group, options.runs, operations);
  check_equal(one_by_one, in_turns);
  for (const auto round : {sequential, overlapped}) {
    if (!ring) break;
    group.barrier().wait();
    const TraceScope traced(ring);
    round(layer, batches);
  }
  const double communication = 2 * (s[0] + s[2]);
  return {{.operation = "dispatch", .seconds = s[0]},
          {.operation = "experts", .seconds = s[1]},
          {.operation = "combine", .seconds = s[2]},
          {.operation = "sequential", .seconds = s[3]},
          {.operation = "overlapped", .seconds = s[4], .hidden = (s[3] - s[4]) / communication}};
}

}  // namespace phalanx::ep
