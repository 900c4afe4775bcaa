#include "phalanx/model/mtp.h"

#include "phalanx/base/text.h"
#include "phalanx/ops/elementwise.h"

namespace phalanx {
namespace {

std::string name_of(int depth) { return format("mtp.{}", depth); }

LinearConfig half(const ModelConfig& c) {
  return {.in = c.width, .out = c.width, .cut = Cut::none, .init_std = c.init_std};
}

const Ahead& ahead(const Pass& pass, int depth) {
  PHX_CHECK(std::cmp_less(depth, pass.batch->ahead.size()), "a batch with {} depths of {}",
            pass.batch->ahead.size(), depth + 1);
  return pass.batch->ahead[static_cast<size_t>(depth)];
}

}  // namespace

MtpModule::MtpModule(const Builder& b, int depth, uint64_t seed)
    : embedding_norm_(make_norm(b, name_of(depth) + ".embedding_norm")),
      stream_norm_(make_norm(b, name_of(depth) + ".stream_norm")),
      from_embedding_(b, name_of(depth) + ".from_embedding", half(b.config)),
      from_stream_(b, name_of(depth) + ".from_stream", half(b.config)),
      block_(b, name_of(depth), b.config.layers + depth, seed),
      norm_(make_norm(b, name_of(depth) + ".norm")) {}

Task<Tensor> MtpModule::forward(Tensor h_TD, Tensor e_TD, Pass pass, Tape& tape) {
  const Tensor e_normed = co_await embedding_norm_->forward(std::move(e_TD), tape.scope("embedding"));
  const Tensor h_normed = co_await stream_norm_->forward(std::move(h_TD), tape.scope("stream"));
  LinearRows e = tape.save(from_embedding_.rows(e_normed));
  const Tensor of_e = co_await from_embedding_.forward(std::move(e));
  LinearRows h = tape.save(from_stream_.rows(h_normed));
  const Tensor of_h = co_await from_stream_.forward(std::move(h));
  co_return co_await block_.forward(add(of_e, of_h), pass, tape.scope("block"));
}

Task<MtpModule::Gradients> MtpModule::backward(Tensor dy_TD, Pass pass, Tape& tape) {
  const Tensor dx_TD = co_await block_.backward(std::move(dy_TD), pass, tape.scope("block"));
  auto h = tape.take<LinearRows>();
  const Tensor dh_normed = co_await from_stream_.backward(dx_TD, std::move(h), tape);
  auto e = tape.take<LinearRows>();
  const Tensor de_normed = co_await from_embedding_.backward(dx_TD, std::move(e), tape);
  Gradients d;
  d.h_TD = co_await stream_norm_->backward(dh_normed, tape.scope("stream"), Tensor());
  d.e_TD = co_await embedding_norm_->backward(de_normed, tape.scope("embedding"), Tensor());
  co_return d;
}

Mtp::Mtp(const Builder& b, TokenTable& embedding, TokenTable& head, int layers, uint64_t seed)
    : data_(b.data),
      embedding_(embedding),
      head_(head),
      layers_(layers),
      weight_(b.config.mtp_weight / b.config.mtp) {
  for (int depth = 0; depth < b.config.mtp; ++depth) {
    const size_t before = b.store.added().size();
    modules_.push_back(std::make_unique<MtpModule>(b, depth, seed));
    weights_.emplace_back(b.store, before);
  }
}

void Mtp::expect_passes(int microbatches) {
  for (DataParallel::Part& part : weights_) data_.expect(part, microbatches);
}

Task<Tensor> Mtp::forward(int depth, Tensor h_TD, Pass pass, Tape& tape) {
  const Tensor e_TD = co_await embedding_.embed(ahead(pass, depth).tokens);
  const Pass own = pass_of_layer(pass, layers_ + depth);
  const Tensor y_TD = co_await module(depth).forward(std::move(h_TD), e_TD, own, tape);
  const Tensor normed_TD = co_await module(depth).norm().forward(y_TD, tape.scope("norm"));
  const LossRows how = loss_rows(pass, weight_);
  const Tensor loss = co_await head_.loss(normed_TD, ahead(pass, depth).targets, how, tape.scope("loss"));
  accumulate(loss_, loss);
  co_return y_TD;
}

Task<> Mtp::forward(Tensor h_TD, Pass pass, Tape& tape) {
  for (int depth = 0; depth < depths(); ++depth) {
    const DataParallel::Hold held = co_await data_.hold(&weights(depth));
    if (depth + 1 < depths()) data_.prefetch(weights(depth + 1));
    h_TD = co_await forward(depth, std::move(h_TD), pass, tape.scope("depth", depth));
  }
}

Task<Tensor> Mtp::backward(int depth, Tensor dy_TD, Pass pass, Tape& tape) {
  const Ahead& next = ahead(pass, depth);
  const Tensor dnormed_TD =
      co_await head_.loss_backward(next.targets, weight_ * pass.scale, tape.scope("loss"));
  Norm& norm = module(depth).norm();
  Tensor sum_TD = co_await norm.backward(dnormed_TD, tape.scope("norm"), std::move(dy_TD));
  const Pass own = pass_of_layer(pass, layers_ + depth);
  const MtpModule::Gradients d = co_await module(depth).backward(std::move(sum_TD), own, tape);
  co_await embedding_.embed_backward(d.e_TD, next.tokens, tape);
  co_return d.h_TD;
}

Task<Tensor> Mtp::backward(Pass pass, Tape& tape) {
  Tensor dh_TD;  // by the depth behind; of the last one there is none
  for (int depth = depths(); depth-- > 0;) {
    const DataParallel::Hold held = co_await data_.hold(&weights(depth));
    if (depth > 0) data_.prefetch(weights(depth - 1));
    dh_TD = co_await backward(depth, std::move(dh_TD), pass, tape.scope("depth", depth));
    co_await passed(&data_, &weights(depth), tape);
  }
  co_return dh_TD;
}

}  // namespace phalanx
