// Text to token ids and back. A tokenizer is made from the training text and travels with the checkpoint as
// JSON.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

/// characters: one token for each different character of the text (code point; ids sorted by it, as in
/// nanoGPT). bytes: 256 tokens. bpe: byte pairs merged in the order in which the text made them frequent
/// (GPT-2).
enum class TokenizerKind : uint8_t { characters, bytes, bpe };

/// Immutable: may be used by several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Ids of `text`, which decode() turns back into exactly these bytes. Error: a character that is not in the
  /// vocabulary, or no UTF-8 (characters only; bytes and bpe take any bytes).
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// The file from which load_tokenizer makes it again.
  virtual std::string json() const = 0;

  /// Number of ids: they are 0 … vocabulary() − 1.
  int64_t vocabulary() const { return static_cast<int64_t>(tokens_.size()); }
  /// The bytes of one token; a token may end inside a UTF-8 character (TextStream). Valid as long as this
  /// object.
  std::string_view bytes(int32_t token) const;
  std::string decode(std::span<const int32_t> tokens) const;

 protected:
  explicit Tokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

 private:
  std::vector<std::string> tokens_;
};

/// Makes a tokenizer from a text. bpe_vocabulary (bpe only, at least 256) is a limit: merging ends before it
/// when no pair occurs twice. Error: characters of a text that is no UTF-8, or empty.
std::unique_ptr<Tokenizer> make_tokenizer(TokenizerKind kind, std::string_view text, int64_t bpe_vocabulary);

/// The tokenizer of Tokenizer::json(). `name` begins messages (a file name). Error: damaged.
std::unique_ptr<Tokenizer> load_tokenizer(std::string_view json, const std::string& name);

/// Decodes tokens one by one for people: bytes of a character that is not complete yet are held back, and
/// what cannot become UTF-8 turns into U+FFFD.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  /// The text that this token completes; may be empty.
  std::string next(int32_t token);
  /// What is still held back, at the end.
  std::string finish();

 private:
  std::string take_complete(bool last);

  const Tokenizer& tokenizer_;
  std::string held_;
};

}  // namespace phalanx
