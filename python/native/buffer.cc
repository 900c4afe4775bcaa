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

// What a dispatch leaves for combine, and which rank and number of experts it belongs to.
class HandleOfRank {
 public:
  HandleOfRank(std::shared_ptr<Rank> rank, int experts, std::shared_ptr<ep::Handle> handle)
      : rank_(std::move(rank)), experts_(experts), handle_(std::move(handle)) {}
  HandleOfRank(const HandleOfRank&) = delete;
  HandleOfRank& operator=(const HandleOfRank&) = delete;
  HandleOfRank(HandleOfRank&&) = default;
  ~HandleOfRank() {
    if (handle_) rank_->dispose(std::move(handle_));
  }

  const std::shared_ptr<ep::Handle>& get(const Rank& rank) const {
    if (&rank != rank_.get()) throw Error("handle: it is of another group; a handle fits its own rank only");
    return handle_;
  }
  int experts() const { return experts_; }
  int64_t tokens() const { return handle_->route.layout.tokens(); }
  int64_t received() const { return handle_->route.received(); }
  std::vector<int64_t> from_ranks() const {
    return {handle_->route.recv_rows.begin(), handle_->route.recv_rows.end()};
  }

 private:
  std::shared_ptr<Rank> rank_;
  int experts_;
  std::shared_ptr<ep::Handle> handle_;
};

struct Layout {
  Tensor per_rank;
  Tensor per_expert;
  Tensor in_rank;
};

// DeepEP's get_dispatch_layout; experts in equal runs. Error: an expert that there is not.
Layout layout_of(const Tensor& topk_idx_TK, int experts, int ranks) {
  const ep::ExpertMap map = ep::ExpertMap::even(experts, ranks);
  const int64_t tokens = topk_idx_TK.rows();
  const int64_t k = topk_idx_TK.dim(1);
  const int64_t* const idx = topk_idx_TK.data<int64_t>();
  Layout out = {Tensor::zeros({ranks}, DType::i32), Tensor::zeros({experts}, DType::i32),
                Tensor::zeros({tokens, ranks}, DType::u8)};
  for (int64_t t = 0; t < tokens; ++t) {
    uint8_t* const in = out.in_rank.data<uint8_t>() + t * ranks;
    for (int64_t i = 0; i < k; ++i) {
      const int64_t e = idx[t * k + i];
      if (e < -1 || e >= experts) {
        throw Error("topk_idx[{}, {}] is {}; experts are 0 … {}, and -1 means none", t, i, e, experts - 1);
      }
      if (e < 0) continue;
      ++out.per_expert.data<int32_t>()[e];
      in[map.owner(e)] = 1;
    }
    for (int r = 0; r < ranks; ++r) out.per_rank.data<int32_t>()[r] += in[r];
  }
  return out;
}

struct Received {
  Tensor x;
  Tensor topk_idx;
  Tensor weights;
  std::shared_ptr<ep::Handle> handle;
};

nb::tuple dispatch(const std::shared_ptr<Rank>& rank, const Tensor& x, const Tensor& topk_idx,
                   const Tensor& weights, int experts) {
  Received got = rank->call([=, self = rank.get()](Group& world) {
    ep::Dispatched in = run(self->buffer(world, experts).dispatch(x, topk_idx, weights));
    return Received{in.x_RD.data.slice(0, in.x_RD.count()), in.topk_idx_RK.data, in.weights_RK,
                    std::make_shared<ep::Handle>(std::move(in.handle))};
  });
  release_arrays();
  return nb::make_tuple(got.x, got.topk_idx, got.weights, HandleOfRank(rank, experts, std::move(got.handle)));
}

Tensor dispatch_again(const std::shared_ptr<Rank>& rank, const Tensor& x, const HandleOfRank& handle) {
  const std::shared_ptr<ep::Handle> h = handle.get(*rank);
  if (x.rows() != handle.tokens()) {
    throw Error("x has {} rows; the handle is of a dispatch of {} tokens", x.rows(), handle.tokens());
  }
  Tensor out = rank->call([=, self = rank.get(), experts = handle.experts()](Group& world) {
    const Rows rows = run(self->buffer(world, experts).dispatch(x, *h));
    return rows.data.slice(0, rows.count());
  });
  release_arrays();
  return out;
}

std::tuple<Tensor, std::optional<Tensor>> combine(const std::shared_ptr<Rank>& rank, const Tensor& y,
                                                  const HandleOfRank& handle,
                                                  const std::optional<Tensor>& weights) {
  const std::shared_ptr<ep::Handle> h = handle.get(*rank);
  if (y.rows() != handle.received()) {
    throw Error("x has {} rows; the handle is of a dispatch that received {}", y.rows(), handle.received());
  }
  std::pair<Tensor, Tensor> out =
      rank->call([=, self = rank.get(), experts = handle.experts()](Group& world) {
        ep::Combined sums =
            run(self->buffer(world, experts).combine(all_rows(y), *h, weights.value_or(Tensor())));
        return std::pair(sums.x_TD, sums.weights_TK);
      });
  release_arrays();
  if (!weights) return {out.first, std::nullopt};
  return {out.first, out.second};
}

}  // namespace

void bind_buffer(nb::module_& m) {
  nb::class_<HandleOfRank>(m, "Handle", "What combine and a cached dispatch need of a dispatch.")
      .def_prop_ro("experts", &HandleOfRank::experts)
      .def_prop_ro("tokens", &HandleOfRank::tokens)
      .def_prop_ro("received", &HandleOfRank::received)
      .def_prop_ro("from_ranks", &HandleOfRank::from_ranks);
  m.def(
      "layout",
      [](const Tensor& topk_idx, int experts, int ranks) {
        Layout out = layout_of(topk_idx, experts, ranks);
        return std::tuple(out.per_rank, out.per_expert, out.in_rank);
      },
      nb::arg("topk_idx"), nb::arg("experts"), nb::arg("ranks"));
  m.def("dispatch", &dispatch, nb::arg("rank"), nb::arg("x"), nb::arg("topk_idx"), nb::arg("weights"),
        nb::arg("experts"));
  m.def("dispatch_again", &dispatch_again, nb::arg("rank"), nb::arg("x"), nb::arg("handle"));
  m.def("combine", &combine, nb::arg("rank"), nb::arg("x"), nb::arg("handle"), nb::arg("weights").none());
}

}  // namespace phalanx::python
