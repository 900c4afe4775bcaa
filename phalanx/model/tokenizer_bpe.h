// Byte-pair encoding: R. Sennrich et al., "Neural machine translation of rare words with subword units",
// 2016, on bytes as in GPT-2.
#pragma once

#include <unordered_map>
#include <utility>

#include "phalanx/model/tokenizer.h"
#include "phalanx/model/tokenizer_words.h"

namespace phalanx {

/// A pair of token ids that becomes one token.
using TokenPair = std::pair<int32_t, int32_t>;

/// The merges that `text` gives, most frequent pair first; pairs that are as frequent, smaller ids first. Ids
/// 0–255 are bytes; merge i makes id 256 + i. At most `vocabulary` − 256; fewer when no pair occurs twice.
std::vector<TokenPair> train_merges(std::string_view text, int64_t vocabulary);

/// Splits text into words (tokenizer_words.h), and in each merges the pair that was learnt first, until none
/// is left.
class BpeTokenizer final : public Tokenizer {
 public:
  /// Each merge names bytes or earlier merges.
  explicit BpeTokenizer(std::vector<TokenPair> merges);
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string json() const override;

 private:
  void encode_word(std::string_view word, std::vector<int32_t>& tokens) const;

  std::vector<TokenPair> merges_;
  std::unordered_map<uint64_t, int32_t> merged_;  // pair_key → id
  WordSplitter splitter_;
};

/// A pair as one number, smaller pairs first.
inline uint64_t pair_key(TokenPair pair) {
  return static_cast<uint64_t>(pair.first) << 32 | static_cast<uint32_t>(pair.second);
}

}  // namespace phalanx
