#include "phalanx/model/tokenizer_bpe.h"

#include <nlohmann/json.hpp>
#include <queue>

#include "phalanx/base/check.h"

namespace phalanx {
namespace {

std::vector<std::string> token_bytes(const std::vector<TokenPair>& merges) {
  std::vector<std::string> tokens;
  tokens.reserve(256 + merges.size());
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (const auto& [left, right] : merges) {
    PHX_CHECK(left >= 0 && right >= 0 && std::cmp_less(std::max(left, right), tokens.size()),
              "merge {}: tokens {} and {}", tokens.size() - 256, left, right);
    tokens.push_back(tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)]);
  }
  return tokens;
}

// The tokens of a word while it is merged: a list in an array, so that a merge leaves the others where they
// are.
struct Piece {
  int32_t token = 0;  // -1: merged into the piece before
  int32_t previous = -1;
  int32_t next = -1;
};

// A merge that was possible when it was found. The smallest id was learnt first; of the same, the leftmost
// goes first.
struct Candidate {
  int32_t id = 0;
  int32_t at = 0;
  TokenPair pair;
  friend bool operator<(const Candidate& a, const Candidate& b) {
    return std::pair(a.id, a.at) > std::pair(b.id, b.at);  // the greatest of a priority_queue is its top
  }
};

}  // namespace

BpeTokenizer::BpeTokenizer(std::vector<TokenPair> merges)
    : Tokenizer(token_bytes(merges)), merges_(std::move(merges)) {
  for (size_t i = 0; i < merges_.size(); ++i) {
    merged_.emplace(pair_key(merges_[i]), static_cast<int32_t>(256 + i));
  }
}

void BpeTokenizer::encode_word(std::string_view word, std::vector<int32_t>& tokens) const {
  std::vector<Piece> pieces(word.size());
  std::priority_queue<Candidate> candidates;
  const auto propose = [&](int32_t at) {
    if (at < 0 || pieces[static_cast<size_t>(at)].next < 0) return;
    const Piece& left = pieces[static_cast<size_t>(at)];
    const TokenPair pair = {left.token, pieces[static_cast<size_t>(left.next)].token};
    const auto found = merged_.find(pair_key(pair));
    if (found != merged_.end()) candidates.push({found->second, at, pair});
  };
  const auto size = static_cast<int32_t>(word.size());
  for (int32_t i = 0; i < size; ++i) {
    const auto byte = static_cast<unsigned char>(word[static_cast<size_t>(i)]);
    pieces[static_cast<size_t>(i)] = {byte, i - 1, i + 1 < size ? i + 1 : -1};
  }
  for (int32_t i = 0; i < size; ++i) propose(i);

  while (!candidates.empty()) {
    const Candidate c = candidates.top();
    candidates.pop();
    Piece& left = pieces[static_cast<size_t>(c.at)];
    if (left.token != c.pair.first || left.next < 0) continue;  // changed since
    Piece& right = pieces[static_cast<size_t>(left.next)];
    if (right.token != c.pair.second) continue;
    left.token = c.id;
    left.next = right.next;
    right.token = -1;
    if (left.next >= 0) pieces[static_cast<size_t>(left.next)].previous = c.at;
    propose(left.previous);
    propose(c.at);
  }
  for (const Piece& piece : pieces) {
    if (piece.token >= 0) tokens.push_back(piece.token);
  }
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  std::unordered_map<std::string_view, std::vector<int32_t>> known;
  for (const std::string_view word : splitter_.split(text)) {
    const auto [at, added] = known.try_emplace(word);
    if (added) encode_word(word, at->second);
    tokens.insert(tokens.end(), at->second.begin(), at->second.end());
  }
  return tokens;
}

std::string BpeTokenizer::json() const {
  return nlohmann::json{{"kind", "bpe"}, {"merges", merges_}}.dump() + "\n";
}

}  // namespace phalanx
