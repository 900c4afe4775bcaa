#include "phalanx/ep/low_latency.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <bit>

#include "phalanx/base/error.h"
#include "python/native/array.h"
#include "python/native/ep.h"
#include "python/native/rank.h"

namespace phalanx::python {
namespace nb = nanobind;
namespace {

// The receiving half of an operation, for Python to call once.
class HookOfRank {
 public:
  HookOfRank(std::shared_ptr<Rank> rank, int64_t number) : rank_(std::move(rank)), number_(number) {}
  HookOfRank(const HookOfRank&) = delete;
  HookOfRank& operator=(const HookOfRank&) = delete;
  ~HookOfRank() {
    if (!received_) rank_->drop(number_);
  }

  void receive() {
    receive_later().wait();
    release_arrays();
  }
  Event receive_later() {
    received_ = true;
    return Event(rank_, [rank = rank_.get(), number = number_](Group&) { rank->receive(number); });
  }

 private:
  std::shared_ptr<Rank> rank_;
  int64_t number_;
  bool received_ = false;
};

// What combine needs of a dispatch, and which rank and buffer of it this belongs to.
struct LowLatencyHandleOfRank {
  std::shared_ptr<Rank> rank;
  LowLatencyKind kind;
  ep::LowLatencyHandle handle;

  const ep::LowLatencyHandle& of(const Rank& other) const {
    if (&other == rank.get()) return handle;
    throw Error("handle: it is of another group; a handle fits its own rank only");
  }
};

// What Python asks of a dispatch.
struct LowLatencyRequest {
  Tensor x;
  Tensor topk_idx;
  std::optional<Tensor> stats;
  std::optional<Tensor> waited;
  LowLatencyKind kind;
  bool f32_scales = true;  // of FP8; else as they were sent
};

struct LowLatencyReceived {
  Tensor x;
  Tensor scales;  // f32, or u8 of UE8M0; undefined without FP8
  Tensor count;
  std::shared_ptr<LowLatencyHandleOfRank> handle;
  std::shared_ptr<HookOfRank> hook;
};

// Scales [experts, slots, …] of rows [0, count[l]) of every expert's slots: powers of two as f32.
void widen(const Tensor& scales_LMS, const Tensor& count_L, const Tensor& out_LMS) {
  const auto power_of_two = [](uint8_t u) { return std::bit_cast<float>(uint32_t{u} << 23); };
  for (int64_t e = 0; e < count_L.rows(); ++e) {
    const auto of_expert = scales_LMS.slice(e, e + 1).span<uint8_t>();
    const auto live = static_cast<size_t>(count_L.data<int32_t>()[e] * scales_LMS.dim(2));
    std::ranges::transform(of_expert.first(live), out_LMS.slice(e, e + 1).data<float>(), power_of_two);
  }
}

LowLatencyReceived dispatch(const std::shared_ptr<Rank>& rank, const LowLatencyRequest& request) {
  LowLatencyReceived got = rank->call([rank, request](Group& world) {
    ep::LowLatencyBuffer& buffer = rank->low_latency(world, request.kind);
    const ep::LowLatencyStats stats = {.rows_L = request.stats.value_or(Tensor()),
                                       .waited_R = request.waited.value_or(Tensor())};
    ep::LowLatencyDispatched in = buffer.dispatch(request.x, request.topk_idx, stats);
    LowLatencyReceived out = {
        .x = in.recv_LMH, .scales = in.scales_LMS, .count = in.count_L, .handle = {}, .hook = {}};
    Pending pending = {.hook = std::move(in.hook), .kept = {stats.rows_L, stats.waited_R}, .then = {}};
    if (request.kind.fp8 == ScaleFormat::ue8m0 && request.f32_scales) {
      out.scales = Tensor::empty(in.scales_LMS.shape(), DType::f32);
      pending.then = [sent = in.scales_LMS, count = in.count_L, wide = out.scales] {
        widen(sent, count, wide);
      };
    }
    out.handle = std::make_shared<LowLatencyHandleOfRank>(rank, request.kind, std::move(in.handle));
    out.hook = std::make_shared<HookOfRank>(rank, rank->keep(std::move(pending)));
    return out;
  });
  release_arrays();
  return got;
}

// What Python asks of a combine.
struct LowLatencyCombineRequest {
  Tensor x;
  Tensor topk_idx;
  Tensor weights;
  Tensor out;
  std::optional<Tensor> waited;
};

std::shared_ptr<HookOfRank> combine(const std::shared_ptr<Rank>& rank,
                                    const LowLatencyCombineRequest& request,
                                    const LowLatencyHandleOfRank& handle) {
  const ep::LowLatencyHandle h = handle.of(*rank);
  return rank->call([=, kind = handle.kind](Group& world) {
    ep::LowLatencyBuffer& buffer = rank->low_latency(world, kind);
    const Tensor waited = request.waited.value_or(Tensor());
    Pending pending = {
        .hook = buffer.combine(request.x, request.topk_idx, request.weights, h, request.out, waited),
        .kept = {request.x, request.topk_idx, request.weights, request.out, waited},
        .then = {}};
    return std::make_shared<HookOfRank>(rank, rank->keep(std::move(pending)));
  });
}

Tensor combine_buffer(const std::shared_ptr<Rank>& rank, const LowLatencyHandleOfRank& handle) {
  const ep::LowLatencyHandle h = handle.of(*rank);
  return rank->call(
      [=, kind = handle.kind](Group& world) { return rank->low_latency(world, kind).combine_buffer(h); });
}

// Masks are of all low-latency buffers of the rank.
template <class F>
void for_each_buffer(Rank& rank, F fn) {
  rank.call([&rank, fn](Group&) {
    if (rank.low_latency().empty()) throw Error("masks: there was no low-latency dispatch yet");
    for (auto& [kind, buffer] : rank.low_latency()) fn(*buffer);
    return true;
  });
}

void bind_types(nb::module_& m) {
  nb::class_<LowLatencyHandleOfRank>(m, "LowLatencyHandle", "What combine needs of a low-latency dispatch.")
      .def_prop_ro("source", [](const LowLatencyHandleOfRank& h) { return h.handle.source_LM; })
      .def_prop_ro("range", [](const LowLatencyHandleOfRank& h) { return h.handle.range_LR; });
  nb::class_<HookOfRank>(m, "Hook", "The receiving half of an operation.")
      .def("__call__", &HookOfRank::receive, "Receives; once.")
      .def("later", &HookOfRank::receive_later, "Receives without being waited for; once.");
  nb::class_<LowLatencyRequest>(m, "LowLatencyRequest", "Tokens, and how they are to be dispatched.")
      .def(nb::init<>())
      .def_rw("x", &LowLatencyRequest::x)
      .def_rw("topk_idx", &LowLatencyRequest::topk_idx)
      .def_rw("stats", &LowLatencyRequest::stats)
      .def_rw("waited", &LowLatencyRequest::waited)
      .def(
          "sizes",
          [](LowLatencyRequest& r, int experts, int64_t max_tokens, int64_t mask_after_ms) {
            r.kind = {.experts = experts,
                      .max_tokens = max_tokens,
                      .width = r.x.dim(1),
                      .dtype = r.x.dtype(),
                      .mask_after_ms = mask_after_ms};
          },
          nb::arg("experts"), nb::arg("max_tokens"), nb::arg("mask_after_ms"), "Sets them, after x.")
      .def(
          "fp8",
          [](LowLatencyRequest& r, bool powers_of_two, bool f32_scales) {
            r.kind.fp8 = powers_of_two ? ScaleFormat::ue8m0 : ScaleFormat::f32;
            r.f32_scales = f32_scales;
          },
          nb::arg("powers_of_two"), nb::arg("f32_scales"), "Rows go in FP8, with such scales; after sizes.");
  nb::class_<LowLatencyReceived>(m, "LowLatencyReceived", "What a low-latency dispatch will have brought.")
      .def_ro("x", &LowLatencyReceived::x)
      .def_prop_ro("scales", [](const LowLatencyReceived& r) { return or_none(r.scales); })
      .def_ro("count", &LowLatencyReceived::count)
      .def_ro("handle", &LowLatencyReceived::handle)
      .def_ro("hook", &LowLatencyReceived::hook);
  nb::class_<LowLatencyCombineRequest>(m, "LowLatencyCombineRequest", "What is to be summed.")
      .def(nb::init<>())
      .def_rw("x", &LowLatencyCombineRequest::x)
      .def_rw("topk_idx", &LowLatencyCombineRequest::topk_idx)
      .def_rw("weights", &LowLatencyCombineRequest::weights)
      .def_rw("out", &LowLatencyCombineRequest::out)
      .def_rw("waited", &LowLatencyCombineRequest::waited);
}

}  // namespace

void bind_low_latency(nb::module_& m) {
  bind_types(m);
  m.def("low_latency_dispatch", &dispatch, nb::arg("rank"), nb::arg("request"));
  m.def("low_latency_combine", &combine, nb::arg("rank"), nb::arg("request"), nb::arg("handle"));
  m.def("low_latency_combine_buffer", &combine_buffer, nb::arg("rank"), nb::arg("handle"));
  m.def(
      "update_mask",
      [](Rank& rank, int other, bool masked) {
        for_each_buffer(rank, [=](ep::LowLatencyBuffer& b) { b.update_mask(other, masked); });
      },
      nb::arg("rank"), nb::arg("other"), nb::arg("masked"));
  m.def(
      "clean_mask",
      [](Rank& rank) { for_each_buffer(rank, [](ep::LowLatencyBuffer& b) { b.clean_mask(); }); },
      nb::arg("rank"));
  m.def(
      "query_mask",
      [](Rank& rank) {
        auto mask = std::make_shared<Tensor>();
        for_each_buffer(rank, [mask](ep::LowLatencyBuffer& b) {
          const Tensor more = b.query_mask();
          if (!mask->defined()) *mask = more;
          for (int64_t r = 0; r < more.rows(); ++r) mask->data<int32_t>()[r] |= more.data<int32_t>()[r];
        });
        return *mask;
      },
      nb::arg("rank"), "i32 [ranks]: 1 where masked.");
}

}  // namespace phalanx::python
