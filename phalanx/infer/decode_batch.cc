#include "phalanx/infer/decode_batch.h"

#include <algorithm>
#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/infer/recorded_step.h"
#include "phalanx/ops/at_rest.h"

namespace phalanx {
namespace {

Tensor i32_of(std::span<const int32_t> values, Device device) {
  return Tensor::of(Shape{std::ssize(values)}, values).to(device);
}

std::vector<int64_t> lengths_of(std::span<const std::vector<int32_t>> texts) {
  std::vector<int64_t> lengths;
  for (const auto& text : texts) lengths.push_back(std::ssize(text));
  return lengths;
}

// A batch with those texts, one behind the other, from position 0 on.
Batch batch_of(std::span<const std::vector<int32_t>> texts, Device device) {
  std::vector<int32_t> tokens;
  std::vector<int64_t> starts;
  for (const auto& text : texts) {
    starts.push_back(std::ssize(tokens));
    tokens.insert(tokens.end(), text.begin(), text.end());
  }
  Batch batch = {.tokens = i32_of(tokens, kCpu)};
  set_sequences(batch, starts);
  batch.tokens = batch.tokens.to(device);
  batch.positions = batch.positions.to(device);
  return batch;
}

}  // namespace

DecodeBatch::DecodeBatch(Transformer& model, int sequences, int64_t capacity)
    : model_(model), cache_(model.config().layers, sequences, capacity, model.device()) {
  PHX_CHECK(sequences > 0 && capacity > 0 && capacity <= model.config().context,
            "{} sequences of at most {} tokens, the model's context is {}", sequences, capacity,
            model.config().context);
  tape_.set_keeping(false);
  const auto each = [&] { return Tensor::zeros({sequences}, DType::i32, model.device()); };
  rows_ = {each(), each(), Tensor::zeros({sequences, capacity}, DType::i32, model.device())};
  chosen_B_ = each();
  batch_ = {.tokens = rows_.tokens,
            .positions = rows_.positions,
            .sequence_offsets = Tensor::empty({sequences + 1}, DType::i64)};
  const auto offsets = batch_.sequence_offsets.span<int64_t>();
  std::iota(offsets.begin(), offsets.end(), 0);
}

Tensor DecodeBatch::read(std::span<const std::vector<int32_t>> texts) {
  const int64_t capacity = rows_.text_BC.dim(1);
  const Tensor all_BC = Tensor::zeros(rows_.text_BC.shape(), DType::i32);
  std::vector<int32_t> last;
  for (const auto& text : texts) {
    PHX_CHECK(!text.empty() && std::ssize(text) <= capacity, "a text of {} tokens, there is room for {}",
              text.size(), capacity);
    std::ranges::copy(text, all_BC.data<int32_t>() + std::ssize(last) * capacity);
    last.push_back(static_cast<int32_t>(text.size()) - 1);
  }
  cache_.clear();
  cache_.expect(lengths_of(texts));
  copy_into(rows_.text_BC, all_BC);
  copy_into(rows_.positions, i32_of(last, kCpu));
  const Batch batch = batch_of(texts, model_.device());
  Tensor logits_BV = run(model_.next_token_logits({.batch = &batch, .cache = &cache_}, tape_));
  argmax_into(chosen_B_, logits_BV);
  return logits_BV;
}

void DecodeBatch::compute_step() {
  advance_into(rows_, chosen_B_);
  logits_BV_ = run(model_.next_token_logits({.batch = &batch_, .cache = &cache_}, tape_));
  argmax_into(chosen_B_, logits_BV_);
}

Tensor DecodeBatch::step(std::span<const int32_t> tokens) {
  const auto sequences = static_cast<size_t>(chosen_B_.numel());
  if (!tokens.empty()) copy_into(chosen_B_, i32_of(tokens, kCpu));
  cache_.expect(std::vector<int64_t>(sequences, 1));
  if constexpr (kHaveCuda) {
    if (model_.device().is_cuda() && model_.moe_layers().empty()) {
      cuda::run_recorded(recorded_, [this] {
        const AtRest at_rest;
        compute_step();
      });
      return logits_BV_;
    }
  }
  compute_step();
  return logits_BV_;
}

std::vector<std::vector<int32_t>> DecodeBatch::texts() const {
  const Tensor text_BC = rows_.text_BC.to(kCpu);
  const Tensor chosen_B = chosen_B_.to(kCpu);
  std::vector<std::vector<int32_t>> texts;
  for (int64_t b = 0; b < text_BC.rows(); ++b) {
    const auto all = text_BC.slice(b, b + 1).span<const int32_t>();
    const auto end = all.begin() + cache_.length(static_cast<int>(b));
    texts.emplace_back(all.begin(), end).push_back(chosen_B.data<const int32_t>()[b]);
  }
  return texts;
}

}  // namespace phalanx
