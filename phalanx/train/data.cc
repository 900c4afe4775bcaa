#include "phalanx/train/data.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "phalanx/base/check.h"
#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/model/slices.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/train/checksum.h"

namespace phalanx {
namespace {

constexpr uint64_t kLargestText = uint64_t{1} << 34;  // bytes; ids take four times as much memory

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xc0u) != 0x80u; }

// The byte at which the validation part begins.
size_t split_point(std::string_view text, double validation_fraction) {
  const auto characters = static_cast<double>(std::ranges::count_if(text, begins_character));
  auto left = static_cast<int64_t>(characters * (1 - validation_fraction));
  size_t at = 0;
  while (at < text.size() && !(begins_character(text[at]) && left-- == 0)) ++at;
  return at;
}

// Refuses a part that holds no row of `context` tokens and their targets.
void check_length(std::string_view part, size_t tokens, int64_t context, std::string_view remedy) {
  if (std::cmp_greater(tokens, context)) return;
  throw Error("the {} part has {} tokens, but one sequence of model.context {} needs {}: {}", part, tokens,
              context, context + 1, remedy);
}

int64_t draw(const RandomStream& stream, size_t tokens, int64_t context, int64_t row, int64_t step) {
  const int64_t places = static_cast<int64_t>(tokens) - context;
  return static_cast<int64_t>(stream.uniform(static_cast<uint64_t>(row), static_cast<uint64_t>(step)) *
                              static_cast<double>(places));
}

}  // namespace

RowShare row_share(int64_t batch, int64_t microbatch, int ranks, int rank) {
  PHX_CHECK(batch > 0 && microbatch >= 0 && rank >= 0 && rank < ranks,
            "batch {}, microbatch {}, rank {} of {}", batch, microbatch, rank, ranks);
  if (batch % ranks != 0) {
    throw Error("train.batch {} is not a multiple of the {} data-parallel ranks", batch, ranks);
  }
  if (microbatch == 0) microbatch = batch / ranks;
  if (batch / ranks % microbatch != 0) {
    throw Error(
        "train.microbatch {} does not divide the {} sequences that each of {} data-parallel ranks has of "
        "train.batch {}",
        microbatch, batch / ranks, ranks, batch);
  }
  return {.batch = batch, .microbatch = microbatch, .ranks = ranks, .rank = rank};
}

Dataset::Dataset(std::string_view text, const DataConfig& config, int64_t context, uint64_t seed,
                 std::unique_ptr<Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)),
      context_(context),
      train_stream_(seed, "data"),
      validation_stream_(seed, "validation data") {
  if (text.empty()) throw Error("the text is empty");
  const size_t split = split_point(text, config.validation_fraction);
  const std::string_view train = text.substr(0, split);
  if (!tokenizer_) {
    const bool bpe = config.tokenizer == TokenizerKind::bpe;
    tokenizer_ = make_tokenizer(config.tokenizer, bpe ? train : text, config.bpe_vocabulary);
  }
  train_ = tokenizer_->encode(train);
  validation_ = tokenizer_->encode(text.substr(split));
  check_length("training", train_.size(), context, "take a longer text or a smaller context");
  if (config.validation_fraction == 0) return;
  check_length(
      "validation", validation_.size(), context,
      "take a longer text, a smaller context or a larger data.validation_fraction (0: no validation)");
}

uint64_t Dataset::checksum() const {
  const std::array parts = {xxh3(std::as_bytes(std::span(train_))),
                            xxh3(std::as_bytes(std::span(validation_)))};
  return xxh3(std::as_bytes(std::span(parts)));
}

int64_t Dataset::train_offset(int64_t step, int64_t row) const {
  return draw(train_stream_, train_.size(), context_, row, step);
}

// Positions, offsets and row numbers are known before the tokens.
Batch Dataset::empty_batch(int64_t first_row, int64_t rows) const {
  const int64_t tokens = rows * context_;
  Batch b = {.tokens = Tensor::empty({tokens}, DType::i32),
             .targets = Tensor::empty({tokens}, DType::i32),
             .positions = Tensor::empty({tokens}, DType::i32),
             .sequence_offsets = Tensor::empty({rows + 1}, DType::i64),
             .rows = Tensor::empty({tokens}, DType::i64)};
  auto* positions = b.positions.data<int32_t>();
  auto* row_numbers = b.rows.data<int64_t>();
  for (int64_t i = 0; i < tokens; ++i) {
    positions[i] = static_cast<int32_t>(i % context_);
    row_numbers[i] = first_row * context_ + i;
  }
  for (int64_t r = 0; r <= rows; ++r) b.sequence_offsets.data<int64_t>()[r] = r * context_;
  return b;
}

// The sequence of `tokens` at `offset`; behind their end, token 0 and ignored targets.
void Dataset::fill_row(Batch& batch, int64_t row, const std::vector<int32_t>& tokens, int64_t offset) const {
  auto* into = batch.tokens.data<int32_t>() + row * context_;
  auto* targets = batch.targets.data<int32_t>() + row * context_;
  const int64_t size = static_cast<int64_t>(tokens.size());
  for (int64_t i = 0; i < context_; ++i) {
    const int64_t at = offset + i;
    into[i] = at < size ? tokens[static_cast<size_t>(at)] : 0;
    targets[i] = at + 1 < size ? tokens[static_cast<size_t>(at + 1)] : kIgnore;
  }
}

std::vector<Batch> Dataset::train_batches(int64_t step, const RowShare& share) const {
  std::vector<Batch> out;
  for (int64_t m = 0; m < share.microbatches(); ++m) {
    const int64_t first = share.first_row(m);
    Batch batch = empty_batch(first, share.microbatch);
    for (int64_t r = 0; r < share.microbatch; ++r) fill_row(batch, r, train_, train_offset(step, first + r));
    add_slices(out, with_ahead(batch, share.depths), context_, share.slices, share.context);
  }
  return out;
}

std::vector<Batch> Dataset::validation(int64_t batches, const RowShare& share) const {
  std::vector<Batch> out;
  if (validation_.empty()) return out;
  const bool whole = batches == 0;
  const int64_t rows_at_once = share.microbatch * share.ranks;
  const int64_t all_rows = (validation_tokens() - 1 + context_ - 1) / context_;
  const int64_t count = whole ? (all_rows + rows_at_once - 1) / rows_at_once : batches * share.microbatches();
  for (int64_t m = 0; m < count; ++m) {
    const int64_t first = share.first_row(m);
    Batch batch = empty_batch(first, share.microbatch);
    for (int64_t r = 0; r < share.microbatch; ++r) {
      const int64_t row = first + r;
      const int64_t offset =
          whole ? row * context_ : draw(validation_stream_, validation_.size(), context_, row, 0);
      fill_row(batch, r, validation_, offset);
    }
    add_slices(out, batch, context_, share.slices, share.context);
  }
  return out;
}

Dataset load_dataset(const DataConfig& config, int64_t context, uint64_t seed,
                     std::unique_ptr<Tokenizer> tokenizer) {
  std::string text;
  try {
    text = read_text(config.text, kLargestText);
  } catch (const Error& e) {
    throw Error("data.text: {}; name a text file there (scripts/fetch_text.py fetches data/shakespeare.txt)",
                e.what());
  }
  try {
    return {text, config, context, seed, std::move(tokenizer)};
  } catch (const Error& e) {
    throw Error("{}: {}", config.text, e.what());
  }
}

}  // namespace phalanx
