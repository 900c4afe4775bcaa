#include "phalanx/parallel/bucket.h"

#include "phalanx/base/trace.h"

namespace phalanx {
namespace {

Tensor part_of(const Tensor& flat, int64_t at, const Shape& local) {
  return flat.defined() ? flat.slice(at, at + local.numel()).view(local) : Tensor();
}

}  // namespace

Tensor Parameter::grad() {
  bucket_->need_grads();
  if (!std::exchange(grad_written_, true) && grad_.bytes() > 0) {
    const TraceSpan span(TraceKind::optimizer, "zero_grad", grad_.bytes());
    zero_into(grad_);
  }
  return grad_;
}

Parameter::GradSum Parameter::grad_sum() {
  bucket_->need_grads();
  return {grad_, std::exchange(grad_written_, true) ? Into::add : Into::replace};
}

void Parameter::settle() const { bucket_->settle(); }

void Bucket::bind() {
  for (Parameter* p : parameters) {
    p->value_ = part_of(values, p->at_, p->slice().local);
    p->grad_ = part_of(grads, p->at_, p->slice().local);
    p->grad_written_ = p->grad_written_ && grads.defined();
  }
}

void Bucket::settle() {
  if (!std::exchange(updating, false)) return;
  updated.pass(device);
  grads = summed = Tensor();
  bind();
}

void Bucket::need_grads() {
  if (grads.defined()) return;
  grads = Tensor::empty({elements}, dtype, device);
  int64_t used = 0;
  for (const Parameter* p : parameters) {
    zero_into(grads.slice(used, p->at_));
    used = p->at_ + p->slice().local.numel();
  }
  zero_into(grads.slice(used, elements));
  bind();
}

void Bucket::complete_grads() {
  need_grads();
  for (Parameter* p : parameters) p->grad();
}

std::string unit_of(const std::string& parameter) {
  size_t end = parameter.find('.');
  const std::string first = parameter.substr(0, end);
  if ((first != "layers" && first != "mtp") || end == std::string::npos) return first;
  end = parameter.find('.', end + 1);
  return parameter.substr(0, end);
}

}  // namespace phalanx
