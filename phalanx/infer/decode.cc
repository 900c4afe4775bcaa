#include "phalanx/infer/decode.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

// Tokens at positions first…first+n−1 of one sequence.
Batch batch_of(std::span<const int32_t> tokens, int64_t first) {
  const auto n = static_cast<int64_t>(tokens.size());
  Batch b = {.tokens = Tensor::of(Shape{n}, tokens), .positions = Tensor::empty({n}, DType::i32)};
  const auto positions = b.positions.span<int32_t>();
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
  b.sequence_offsets = Tensor::empty({2}, DType::i64);
  b.sequence_offsets.data<int64_t>()[0] = 0;
  b.sequence_offsets.data<int64_t>()[1] = n;
  return b;
}

// Reads `tokens` into the cache; the logits after the last one.
Tensor read_tokens(Transformer& model, KvCache& cache, std::span<const int32_t> tokens, Tape& tape) {
  const Batch batch = batch_of(tokens, cache.length());
  return run(model.next_token_logits({.batch = &batch, .cache = &cache}, tape));
}

}  // namespace

void check(const GenerateOptions& options) {
  if (options.tokens < 1) throw Error("tokens {}: at least 1", options.tokens);
  check(options.sampler);
}

GenerateResult generate(Transformer& model, std::span<const int32_t> prompt, const GenerateOptions& options,
                        FunctionRef<bool(int32_t token)> on_token) {
  if (prompt.empty()) throw Error("an empty prompt: give at least one token to continue");
  check(options);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const auto context = static_cast<size_t>(model.config().context);

  Tape tape;
  tape.set_keeping(false);
  KvCache cache(model.config().layers);
  GenerateResult result;
  std::vector<int32_t> text(prompt.begin(), prompt.end());
  std::span<const int32_t> unread(text);
  if (unread.size() > context) unread = unread.last(context);

  while (static_cast<int64_t>(result.tokens.size()) < options.tokens) {
    const Tensor logits = read_tokens(model, cache, unread, tape);
    const int32_t token = sample(logits, options.sampler, text.size());
    if (result.tokens.empty()) result.seconds_to_first = elapsed();
    text.push_back(token);
    result.tokens.push_back(token);
    if (!on_token(token)) break;
    unread = std::span<const int32_t>(text).last(1);
    if (static_cast<size_t>(cache.length()) == context) {
      cache.clear();
      unread = std::span<const int32_t>(text).last(std::max<size_t>(context / 2, 1));
    }
  }
  result.seconds = elapsed();
  return result;
}

}  // namespace phalanx
