#include "phalanx/ep/balance.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "phalanx/base/error.h"
#include "python/native/array.h"
#include "python/native/ep.h"

namespace phalanx::python {
namespace nb = nanobind;
namespace {

using Tables = std::tuple<Tensor, Tensor, Tensor>;

// i32 values as i64, as EPLB gives them.
Tensor wide(const Shape& shape, std::span<const int32_t> values) {
  const Tensor out = Tensor::empty(shape, DType::i64);
  std::ranges::copy(values, out.data<int64_t>());
  return out;
}

struct BalanceRequest {
  ep::BalanceSizes sizes;
  bool best = false;
  int64_t max_moves = std::numeric_limits<int64_t>::max();
};

Tables rebalance(const Tensor& weight_LE, const BalanceRequest& request,
                 const std::optional<Tensor>& previous_LR) {
  const std::span<const float> weight = weight_LE.span<const float>();
  const ep::BalanceSizes& sizes = request.sizes;
  std::vector<int32_t> old;
  if (previous_LR) {
    for (const int64_t e : previous_LR->span<const int64_t>()) {
      if (e < 0 || e >= sizes.experts) throw Error("previous: expert {} of {}", e, sizes.experts);
      old.push_back(static_cast<int32_t>(e));
    }
  }
  const ep::ReplicaPlacement placement =
      request.best ? ep::balance_experts(weight, sizes, {.phy2log = old, .max_moves = request.max_moves})
                   : ep::rebalance_experts(weight, sizes);
  return {wide({sizes.layers, sizes.replicas}, placement.phy2log),
          wide({sizes.layers, sizes.experts, placement.most_copies}, placement.log2phy),
          wide({sizes.layers, sizes.experts}, placement.logcnt)};
}

}  // namespace

void bind_balance(nb::module_& m) {
  nb::class_<BalanceRequest>(m, "BalanceRequest", "Sizes and policy of rebalance.")
      .def(nb::init<>())
      .def_prop_rw(
          "sizes",
          [](const BalanceRequest& r) {
            return std::tuple(r.sizes.layers, r.sizes.experts, r.sizes.replicas, r.sizes.groups,
                              r.sizes.nodes, r.sizes.gpus);
          },
          [](BalanceRequest& r, const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>& s) {
            r.sizes = {.layers = std::get<0>(s),
                       .experts = std::get<1>(s),
                       .replicas = std::get<2>(s),
                       .groups = std::get<3>(s),
                       .nodes = std::get<4>(s),
                       .gpus = std::get<5>(s)};
          })
      .def_rw("best", &BalanceRequest::best)
      .def_rw("max_moves", &BalanceRequest::max_moves);
  m.def("rebalance", &rebalance, nb::arg("weight"), nb::arg("request"), nb::arg("previous").none(),
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace phalanx::python
