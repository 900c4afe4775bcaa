#include "phalanx/infer/decode.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/infer/decode_batch.h"

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

// What has been read of one text.
class Reader {
 public:
  virtual ~Reader() = default;
  /// Reads on: any tokens at first, later one at a time. The logits [1, V] after the last one, on the host.
  virtual Tensor read(std::span<const int32_t> tokens) = 0;
  virtual int64_t length() const = 0;
  /// Forgets all.
  virtual void clear() = 0;
};

class CpuReader final : public Reader {
 public:
  explicit CpuReader(Transformer& model) : model_(model), cache_(model.config().layers) {
    tape_.set_keeping(false);
  }
  Tensor read(std::span<const int32_t> tokens) override {
    const Batch batch = batch_of(tokens, cache_.length());
    return run(model_.next_token_logits({.batch = &batch, .cache = &cache_}, tape_));
  }
  int64_t length() const override { return cache_.length(); }
  void clear() override { cache_.clear(); }

 private:
  Transformer& model_;
  KvCache cache_;
  Tape tape_;
};

class GpuReader final : public Reader {
 public:
  GpuReader(Transformer& model, int64_t capacity) : batch_(model, 1, capacity) {}

  Tensor read(std::span<const int32_t> tokens) override {
    if (length_ == 0) {
      const std::vector<int32_t> text(tokens.begin(), tokens.end());
      length_ = std::ssize(text);
      return batch_.read({&text, 1}).to(kCpu);
    }
    ++length_;
    return batch_.step(tokens).to(kCpu);
  }
  int64_t length() const override { return length_; }
  void clear() override { length_ = 0; }

 private:
  DecodeBatch batch_;
  int64_t length_ = 0;
};

std::unique_ptr<Reader> make_reader(Transformer& model, int64_t capacity) {
  if (model.device().is_cuda()) return std::make_unique<GpuReader>(model, capacity);
  return std::make_unique<CpuReader>(model);
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

  GenerateResult result;
  std::vector<int32_t> text(prompt.begin(), prompt.end());
  std::span<const int32_t> unread(text);
  if (unread.size() > context) unread = unread.last(context);
  const std::unique_ptr<Reader> reader =
      make_reader(model, std::min(model.config().context, std::ssize(unread) + options.tokens));

  while (static_cast<int64_t>(result.tokens.size()) < options.tokens) {
    const Tensor logits = reader->read(unread);
    const int32_t token = sample(logits, options.sampler, text.size());
    if (result.tokens.empty()) result.seconds_to_first = elapsed();
    text.push_back(token);
    result.tokens.push_back(token);
    if (!on_token(token)) break;
    unread = std::span<const int32_t>(text).last(1);
    if (static_cast<size_t>(reader->length()) == context) {
      reader->clear();
      unread = std::span<const int32_t>(text).last(std::max<size_t>(context / 2, 1));
    }
  }
  result.seconds = elapsed();
  return result;
}

}  // namespace phalanx
