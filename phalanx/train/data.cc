#include "phalanx/train/data.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
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
  train_ = encode(train, config.documents);
  validation_ = encode(text.substr(split), config.documents);
  check_length("training", train_.tokens.size(), context, "take a longer text or a smaller context");
  if (config.validation_fraction == 0) return;
  check_length(
      "validation", validation_.tokens.size(), context,
      "take a longer text, a smaller context or a larger data.validation_fraction (0: no validation)");
}

// Each document by itself, so that no token belongs to two.
Dataset::Part Dataset::encode(std::string_view text, const std::string& separator) const {
  Part part;
  while (!text.empty()) {
    const size_t end = separator.empty() ? std::string_view::npos : text.find(separator);
    const size_t bytes = end == std::string_view::npos ? text.size() : end + separator.size();
    const std::vector<int32_t> document = tokenizer_->encode(text.substr(0, bytes));
    part.documents.push_back(static_cast<int64_t>(part.tokens.size()));
    part.tokens.insert(part.tokens.end(), document.begin(), document.end());
    text.remove_prefix(bytes);
  }
  return part;
}

uint64_t Dataset::checksum() const {
  const std::array parts = {xxh3(std::as_bytes(std::span(train_.tokens))),
                            xxh3(std::as_bytes(std::span(validation_.tokens)))};
  return xxh3(std::as_bytes(std::span(parts)));
}

int64_t Dataset::train_offset(int64_t step, int64_t row) const {
  return draw(train_stream_, train_.tokens.size(), context_, row, step);
}

// Rows first_row … of a step, that begin at those offsets of the part. Behind the part's end, token 0 and no
// targets.
Batch Dataset::batch_of(int64_t first_row, const Part& part, const std::vector<int64_t>& offsets) const {
  const int64_t rows = static_cast<int64_t>(offsets.size()) * context_;
  const auto size = static_cast<int64_t>(part.tokens.size());
  Batch b = {.tokens = Tensor::empty({rows}, DType::i32),
             .targets = Tensor::empty({rows}, DType::i32),
             .rows = Tensor::empty({rows}, DType::i64)};
  std::iota(b.rows.data<int64_t>(), b.rows.data<int64_t>() + rows, first_row * context_);
  auto* tokens = b.tokens.data<int32_t>();
  auto* targets = b.targets.data<int32_t>();
  std::vector<int64_t> starts;
  for (const int64_t offset : offsets) {
    starts.push_back(tokens - b.tokens.data<int32_t>());
    auto next = std::ranges::upper_bound(part.documents, offset);
    const auto begins_at = [&](int64_t at) { return next != part.documents.end() && *next == at; };
    for (int64_t at = offset; at < offset + context_; ++at) {
      if (begins_at(at)) {
        starts.push_back(tokens - b.tokens.data<int32_t>());
        ++next;
      }
      *tokens++ = at < size ? part.tokens[static_cast<size_t>(at)] : 0;
      const bool last = at + 1 >= size || begins_at(at + 1);
      *targets++ = last ? kIgnore : part.tokens[static_cast<size_t>(at + 1)];
    }
  }
  set_sequences(b, starts);
  return b;
}

std::vector<Batch> Dataset::train_batches(int64_t step, const RowShare& share) const {
  std::vector<Batch> out;
  std::vector<int64_t> offsets(static_cast<size_t>(share.microbatch));
  for (int64_t m = 0; m < share.microbatches(); ++m) {
    const int64_t first = share.first_row(m);
    for (int64_t r = 0; r < share.microbatch; ++r) {
      offsets[static_cast<size_t>(r)] = train_offset(step, first + r);
    }
    const Batch batch = batch_of(first, train_, offsets);
    add_slices(out, with_ahead(batch, share.depths), context_, share.slices, share.context);
  }
  return out;
}

std::vector<Batch> Dataset::validation(int64_t batches, const RowShare& share) const {
  std::vector<Batch> out;
  if (validation_.tokens.empty()) return out;
  std::vector<int64_t> offsets(static_cast<size_t>(share.microbatch));
  const bool whole = batches == 0;
  const int64_t rows_at_once = share.microbatch * share.ranks;
  const int64_t all_rows = (validation_tokens() - 1 + context_ - 1) / context_;
  const int64_t count = whole ? (all_rows + rows_at_once - 1) / rows_at_once : batches * share.microbatches();
  for (int64_t m = 0; m < count; ++m) {
    const int64_t first = share.first_row(m);
    for (int64_t r = 0; r < share.microbatch; ++r) {
      const int64_t row = first + r;
      offsets[static_cast<size_t>(r)] =
          whole ? row * context_ : draw(validation_stream_, validation_.tokens.size(), context_, row, 0);
    }
    add_slices(out, batch_of(first, validation_, offsets), context_, share.slices, share.context);
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
