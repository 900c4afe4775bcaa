#include "phalanx/model/tokenizer.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "phalanx/base/check.h"
#include "phalanx/base/error.h"
#include "phalanx/model/strict_json-inl.h"
#include "phalanx/model/tokenizer_bpe.h"
#include "phalanx/model/utf8.h"

namespace phalanx {
namespace {

// For messages: 'é' (U+00E9), or U+000A when it has no shape.
std::string named(int32_t code) {
  const std::string number = format("U+{:04X}", code);
  const bool visible = code > 0x20 && (code < 0x7f || code > 0xa0);
  return visible ? format("'{}' ({})", utf8_text(code), number) : number;
}

class CharacterTokenizer final : public Tokenizer {
 public:
  explicit CharacterTokenizer(const std::set<int32_t>& codes) : Tokenizer(texts(codes)) {
    int32_t id = 0;
    for (const int32_t code : codes) ids_.emplace(code, id++);
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens;
    tokens.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
      const Utf8Character c = character(text, at);
      const auto known = ids_.find(c.code);
      if (known == ids_.end()) {
        throw Error("character {} at position {} is none of the {} in the vocabulary", named(c.code),
                    tokens.size(), vocabulary());
      }
      tokens.push_back(known->second);
      at += c.length;
    }
    return tokens;
  }

  std::string json() const override {
    std::vector<std::string_view> characters;
    for (int32_t id = 0; id < vocabulary(); ++id) characters.push_back(bytes(id));
    return nlohmann::json{{"kind", "char"}, {"characters", characters}}.dump() + "\n";
  }

  // The character at a byte of a text that must be UTF-8.
  static Utf8Character character(std::string_view text, size_t at) {
    const Utf8Character c = utf8_at(text, at);
    if (c.length > 0) return c;
    throw Error("byte 0x{:02x} at offset {} is no UTF-8, which characters need; bytes and bpe take anything",
                static_cast<unsigned>(static_cast<unsigned char>(text[at])), at);
  }

 private:
  static std::vector<std::string> texts(const std::set<int32_t>& codes) {
    std::vector<std::string> texts;
    for (const int32_t code : codes) texts.push_back(utf8_text(code));
    return texts;
  }

  std::unordered_map<int32_t, int32_t> ids_;  // by code point
};

class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer() : Tokenizer(all_bytes()) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens(text.size());
    std::ranges::transform(text, tokens.begin(), [](char c) { return static_cast<unsigned char>(c); });
    return tokens;
  }

  std::string json() const override { return nlohmann::json{{"kind", "byte"}}.dump() + "\n"; }

 private:
  static std::vector<std::string> all_bytes() {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    return tokens;
  }
};

std::unique_ptr<Tokenizer> make_characters(std::string_view text) {
  std::set<int32_t> codes;
  for (size_t at = 0; at < text.size();) {
    const Utf8Character c = CharacterTokenizer::character(text, at);
    codes.insert(c.code);
    at += c.length;
  }
  if (codes.empty()) throw Error("an empty text has no characters to make a vocabulary from");
  return std::make_unique<CharacterTokenizer>(codes);
}

std::unique_ptr<Tokenizer> load_characters(const nlohmann::json& json) {
  std::set<int32_t> codes;
  for (const auto& character : json.at("characters")) {
    const auto& bytes = character.get_ref<const std::string&>();
    const Utf8Character c = bytes.empty() ? Utf8Character{} : utf8_at(bytes, 0);
    if (c.length == 0 || c.length != bytes.size()) throw Error("\"{}\" is not one character", bytes);
    // Ids are places in this list and in the sorted set: both must agree.
    if (!codes.empty() && c.code <= *codes.rbegin()) throw Error("its characters are not in ascending order");
    codes.insert(c.code);
  }
  if (codes.empty()) throw Error("it has no characters");
  return std::make_unique<CharacterTokenizer>(codes);
}

std::unique_ptr<Tokenizer> load_bpe(const nlohmann::json& json) {
  auto merges = json.at("merges").get<std::vector<TokenPair>>();
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto [left, right] = merges[i];
    if (left < 0 || right < 0 || std::cmp_greater_equal(std::max(left, right), 256 + i)) {
      throw Error("merge {} joins tokens {} and {}, of which one does not exist yet", i, left, right);
    }
  }
  return std::make_unique<BpeTokenizer>(std::move(merges));
}

}  // namespace

std::string_view Tokenizer::bytes(int32_t token) const {
  PHX_CHECK(token >= 0 && token < vocabulary(), "token {} of {}", token, vocabulary());
  return tokens_[static_cast<size_t>(token)];
}

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (const int32_t token : tokens) text += bytes(token);
  return text;
}

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerKind kind, std::string_view text, int64_t bpe_vocabulary) {
  switch (kind) {
    case TokenizerKind::characters:
      return make_characters(text);
    case TokenizerKind::bytes:
      return std::make_unique<ByteTokenizer>();
    case TokenizerKind::bpe:
      if (bpe_vocabulary < 256)
        throw Error("a bpe vocabulary of {} cannot hold the 256 bytes", bpe_vocabulary);
      return std::make_unique<BpeTokenizer>(train_merges(text, bpe_vocabulary));
  }
  PHX_CHECK(false, "tokenizer kind {}", static_cast<int>(kind));
  return nullptr;
}

std::unique_ptr<Tokenizer> load_tokenizer(std::string_view json, const std::string& name) {
  try {
    const auto root = nlohmann::json::parse(json);
    const auto kind = root.at("kind").get<std::string>();
    if (kind == "char") return load_characters(root);
    if (kind == "byte") return std::make_unique<ByteTokenizer>();
    if (kind == "bpe") return load_bpe(root);
    throw Error("its kind \"{}\" is none of char, byte, bpe", kind);
  } catch (const nlohmann::json::exception& e) {
    throw Error("{}: not a tokenizer: {}", name, strict_json::as_utf8(e.what()));
  } catch (const Error& e) {
    throw Error("{}: not a tokenizer: {}", name, e.what());
  }
}

std::string TextStream::take_complete(bool last) {
  std::string text;
  size_t at = 0;
  while (at < held_.size()) {
    const size_t length = utf8_at(held_, at).length;
    if (length == 0 && !last && utf8_unfinished(std::string_view(held_).substr(at))) break;
    text += length > 0 ? held_.substr(at, length) : "\ufffd";
    at += std::max<size_t>(length, 1);
  }
  held_.erase(0, at);
  return text;
}

std::string TextStream::next(int32_t token) {
  held_ += tokenizer_.bytes(token);
  return take_complete(false);
}

std::string TextStream::finish() { return take_complete(true); }

}  // namespace phalanx
