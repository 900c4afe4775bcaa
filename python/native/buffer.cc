#include "phalanx/ep/buffer.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "phalanx/base/error.h"
#include "python/native/array.h"
#include "python/native/ep.h"
#include "python/native/rank.h"

namespace phalanx::python {
namespace nb = nanobind;
namespace {

// What a dispatch leaves for combine, and which rank and buffer of it this belongs to.
class HandleOfRank {
 public:
  HandleOfRank(std::shared_ptr<Rank> rank, BufferKind kind, ep::Handle handle)
      : rank_(std::move(rank)), kind_(kind), handle_(std::make_shared<ep::Handle>(std::move(handle))) {}
  HandleOfRank(const HandleOfRank&) = delete;
  HandleOfRank& operator=(const HandleOfRank&) = delete;
  HandleOfRank(HandleOfRank&&) = default;
  ~HandleOfRank() {
    if (handle_) rank_->dispose(std::move(handle_));
  }

  // Error: it is of another rank, or of another world.
  const std::shared_ptr<ep::Handle>& of(const Rank& rank) const {
    if (&rank == rank_.get()) return handle_;
    throw Error("handle: it is of another group; a handle fits its own rank only");
  }
  const ep::Handle& get() const { return *handle_; }
  const BufferKind& kind() const { return kind_; }

 private:
  std::shared_ptr<Rank> rank_;
  BufferKind kind_;
  std::shared_ptr<ep::Handle> handle_;
};

std::vector<int64_t> list_of(const PooledVector<int64_t>& numbers) {
  return {numbers.begin(), numbers.end()};
}

// How many rows combine wants.
int64_t rows_of(const HandleOfRank& h) {
  return h.get().expansion ? h.get().expansion->rows() : h.get().route.received();
}

// What Python asks of a dispatch. Later: rows come when the event has.
struct DispatchRequest {
  ep::Tokens tokens;
  ep::DispatchOptions options;
  BufferKind kind;
  bool later() const { return options.rows_later; }
};

struct Received {
  Tensor x;
  Tensor scales;
  Tensor topk_idx;
  Tensor weights;
  Tensor sources;
  std::vector<int64_t> counts;
  std::vector<int64_t> firsts;
  std::shared_ptr<HandleOfRank> handle;
  std::optional<Event> rest;
};

// Rows of a cached dispatch come to `room`, after all that the rank was asked for before.
Event dispatch_later(const std::shared_ptr<Rank>& rank, const Quantized& rows, const HandleOfRank& handle,
                     const ep::Redispatched& room) {
  return Event(rank, [=, rank = rank.get(), kind = handle.kind(), h = handle.of(*rank)](Group& world) {
    run(rank->buffer(world, kind).dispatch_into(rows.q_TD, rows.scales_TS, *h, room));
  });
}

Received dispatch(const std::shared_ptr<Rank>& rank, const DispatchRequest& request) {
  Received got = rank->call([rank, request](Group& world) {
    ep::Dispatched in = run(rank->buffer(world, request.kind).dispatch(request.tokens, request.options));
    Received out = {.x = in.x_RD.data,
                    .scales = in.scales_RS,
                    .topk_idx = in.topk_idx_RK.data,
                    .weights = in.weights_RK,
                    .sources = in.sources_R2,
                    .counts = list_of(in.expert_rows.count),
                    .firsts = list_of(in.expert_rows.first),
                    .handle = {},
                    .rest = {}};
    out.handle = std::make_shared<HandleOfRank>(rank, request.kind, std::move(in.handle));
    return out;
  });
  if (request.later()) {
    got.rest = dispatch_later(rank, {request.tokens.x_TD, request.tokens.scales_TS}, *got.handle,
                              {all_rows(got.x), got.scales});
  }
  release_arrays();
  return got;
}

using TwoTensors = std::tuple<Tensor, std::optional<Tensor>, std::optional<Event>>;

TwoTensors dispatch_again(const std::shared_ptr<Rank>& rank, const Quantized& rows,
                          const HandleOfRank& handle, bool later) {
  const std::shared_ptr<ep::Handle> h = handle.of(*rank);
  const ep::Redispatched room = rank->call([=, kind = handle.kind()](Group& world) {
    return rank->buffer(world, kind).room(rows.q_TD, rows.scales_TS, *h);
  });
  const Event rest = dispatch_later(rank, rows, handle, room);
  if (!later) rest.wait();
  release_arrays();
  return {room.x_RD.data, or_none(room.scales_RS), later ? std::optional(rest) : std::nullopt};
}

// What Python asks of a combine, beside the rows.
struct CombineRequest {
  std::optional<Tensor> weights;
  std::vector<Tensor> bias;
  bool quantize = false;
  bool later = false;  // sums come when the event has
};

TwoTensors combine(const std::shared_ptr<Rank>& rank, const Tensor& y, const HandleOfRank& handle,
                   const CombineRequest& request) {
  const std::shared_ptr<ep::Handle> h = handle.of(*rank);
  ep::CombineOptions options = {.weights = request.weights.value_or(Tensor()), .quantize = request.quantize};
  options.bias.assign(request.bias.begin(), request.bias.end());
  options.into = ep::sums_for(y, options.weights, *h);
  const Event rest(rank, [=, rank = rank.get(), kind = handle.kind()](Group& world) {
    run(rank->buffer(world, kind).combine(all_rows(y), *h, options));
  });
  if (!request.later) rest.wait();
  release_arrays();
  return {options.into.x_TD, or_none(options.into.weights_TK),
          request.later ? std::optional(rest) : std::nullopt};
}

void bind_handle(nb::module_& m) {
  nb::class_<HandleOfRank>(m, "Handle", "What combine and a cached dispatch need of a dispatch.")
      .def_prop_ro("tokens", [](const HandleOfRank& h) { return h.get().route.layout.tokens(); })
      .def_prop_ro("received", [](const HandleOfRank& h) { return h.get().route.received(); })
      .def_prop_ro("rows", &rows_of, "How many rows combine wants.")
      .def_prop_ro("from_ranks", [](const HandleOfRank& h) { return list_of(h.get().route.recv_rows); })
      .def_prop_ro("topk_idx", [](const HandleOfRank& h) -> std::optional<Tensor> {
        if (!h.get().expansion) return std::nullopt;
        return h.get().expansion->topk_idx_RK;
      });
}

void bind_dispatch(nb::module_& m) {
  nb::class_<DispatchRequest>(m, "DispatchRequest", "Tokens, and how they are to be dispatched.")
      .def(nb::init<>())
      .def_prop_rw(
          "x", [](const DispatchRequest& r) { return r.tokens.x_TD; },
          [](DispatchRequest& r, const Tensor& t) { r.tokens.x_TD = t; })
      .def_prop_rw(
          "topk_idx", [](const DispatchRequest& r) { return r.tokens.topk_idx_TK; },
          [](DispatchRequest& r, const Tensor& t) { r.tokens.topk_idx_TK = t; })
      .def_prop_rw(
          "weights", [](const DispatchRequest& r) { return or_none(r.tokens.weights_TK); },
          [](DispatchRequest& r, const Tensor& t) { r.tokens.weights_TK = t; })
      .def_prop_rw(
          "scales", [](const DispatchRequest& r) { return or_none(r.tokens.scales_TS); },
          [](DispatchRequest& r, const Tensor& t) { r.tokens.scales_TS = t; })
      .def_prop_rw(
          "experts", [](const DispatchRequest& r) { return r.kind.experts; },
          [](DispatchRequest& r, int experts) { r.kind.experts = experts; })
      .def_prop_rw(
          "checked", [](const DispatchRequest& r) { return r.kind.checked; },
          [](DispatchRequest& r, bool checked) { r.kind.checked = checked; })
      .def_prop_rw(
          "by_slot", [](const DispatchRequest& r) { return r.options.order == ep::PairOrder::by_slot; },
          [](DispatchRequest& r, bool on) {
            r.options.order = on ? ep::PairOrder::by_slot : ep::PairOrder::by_rank;
          })
      .def_prop_rw(
          "expert_alignment", [](const DispatchRequest& r) { return r.options.expert_alignment; },
          [](DispatchRequest& r, int64_t n) { r.options.expert_alignment = n; })
      .def_prop_rw(
          "worst_rows", [](const DispatchRequest& r) { return r.options.worst_rows; },
          [](DispatchRequest& r, int64_t n) { r.options.worst_rows = n; })
      .def_prop_rw(
          "expand", [](const DispatchRequest& r) { return r.options.expand; },
          [](DispatchRequest& r, bool on) { r.options.expand = on; })
      .def_prop_rw(
          "later", &DispatchRequest::later, [](DispatchRequest& r, bool on) { r.options.rows_later = on; },
          "Rows come when Received.rest has ended.")
      .def_prop_rw(
          "sources", [](const DispatchRequest& r) { return r.options.sources; },
          [](DispatchRequest& r, bool on) { r.options.sources = on; });
  nb::class_<Received>(m, "Received", "What a dispatch brought.")
      .def_ro("x", &Received::x)
      .def_prop_ro("scales", [](const Received& r) { return or_none(r.scales); })
      .def_ro("topk_idx", &Received::topk_idx)
      .def_prop_ro("weights", [](const Received& r) { return or_none(r.weights); })
      .def_prop_ro("sources", [](const Received& r) { return or_none(r.sources); })
      .def_ro("counts", &Received::counts)
      .def_ro("firsts", &Received::firsts)
      .def_ro("handle", &Received::handle)
      .def_ro("rest", &Received::rest);
  m.def("dispatch", &dispatch, nb::arg("rank"), nb::arg("request"));
  m.def(
      "dispatch_again",
      [](const std::shared_ptr<Rank>& rank, const Tensor& x, const std::optional<Tensor>& scales,
         const HandleOfRank& handle, bool later) {
        return dispatch_again(rank, {x, scales.value_or(Tensor())}, handle, later);
      },
      nb::arg("rank"), nb::arg("x"), nb::arg("scales").none(), nb::arg("handle"), nb::arg("later"));
}

void bind_combine(nb::module_& m) {
  nb::class_<CombineRequest>(m, "CombineRequest", "What travels with the rows, and how.")
      .def(nb::init<>())
      .def_rw("weights", &CombineRequest::weights)
      .def_rw("bias", &CombineRequest::bias)
      .def_rw("quantize", &CombineRequest::quantize)
      .def_rw("later", &CombineRequest::later);
  m.def("combine", &combine, nb::arg("rank"), nb::arg("x"), nb::arg("handle"), nb::arg("request"));
}

}  // namespace

void bind_buffer(nb::module_& m) {
  bind_handle(m);
  bind_dispatch(m);
  bind_combine(m);
  m.def(
      "layout",
      [](const Tensor& topk_idx, int experts, int ranks) {
        const ep::DispatchLayout out = ep::dispatch_layout(topk_idx, ep::ExpertMap::even(experts, ranks));
        return std::tuple(out.tokens_per_rank, out.tokens_per_expert, out.is_token_in_rank);
      },
      nb::arg("topk_idx"), nb::arg("experts"), nb::arg("ranks"));
}

}  // namespace phalanx::python
