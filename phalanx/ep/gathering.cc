#include "phalanx/ep/gathering.h"

#include "phalanx/ops/keep_experts.h"

namespace phalanx::ep {

Gathering::Gathering(Group& ep, Group& etp, int experts)
    : ep_(ep), etp_(etp), experts_(ExpertMap::even(experts, ep.size())) {}

Task<Gathered> Gathering::dispatch(Tensor x_TD, Tensor topk_idx_TK, Tensor weights_TK) {
  Gathered out;
  const Tensor topk_idx_RK = co_await gather(std::move(topk_idx_TK));
  out.weights_RK = co_await gather(std::move(weights_TK));
  const Tensor x_RD = co_await gather(std::move(x_TD));
  out.x_RD = all_rows(x_RD);
  out.topk_idx_RK = {topk_idx_RK, out.x_RD.live};
  if (ep_.size() > 1) keep_experts(topk_idx_RK, experts_.first(ep_.rank()), local_experts());
  co_return out;
}

Task<Tensor> Gathering::gather(Tensor x) {
  for (Group* group : {&ep_, &etp_}) {
    if (group->size() == 1) continue;
    Work all = group->all_gather(std::move(x));
    x = co_await all;
  }
  co_return x;
}

Task<Tensor> Gathering::sum(Tensor x) {
  for (Group* group : {&etp_, &ep_}) {
    if (group->size() == 1) continue;
    Work part = group->reduce_scatter(std::move(x));
    x = co_await part;
  }
  co_return x;
}

}  // namespace phalanx::ep
