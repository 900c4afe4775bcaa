#include <algorithm>
#include <queue>

#include "phalanx/model/tokenizer_bpe.h"

namespace phalanx {
namespace {

// A different word of the text, as tokens of the merges so far.
struct Word {
  std::vector<int32_t> tokens;
  int64_t count = 0;  // in the text
};

struct PairCount {
  int64_t count = 0;
  uint64_t key = 0;
  friend bool operator<(const PairCount& a, const PairCount& b) {
    return a.count != b.count ? a.count < b.count : a.key > b.key;
  }
};

class MergeTrainer {
 public:
  explicit MergeTrainer(std::string_view text) {
    std::unordered_map<std::string_view, size_t> index;
    for (const std::string_view word : WordSplitter().split(text)) {
      const auto [at, added] = index.try_emplace(word, words_.size());
      if (added) words_.push_back({bytes_of(word)});
      ++words_[at->second].count;
    }
    for (size_t i = 0; i < words_.size(); ++i) count_pairs(i, +1);
    for (const auto& [key, pair] : pairs_) queue_.push({pair.count, key});
  }

  // The most frequent pair becomes `token`. False: no pair occurs twice.
  bool merge(int32_t token, TokenPair& merged) {
    const uint64_t key = pop_most_frequent();
    if (pairs_[key].count < 2) return false;
    merged = {static_cast<int32_t>(key >> 32), static_cast<int32_t>(key & 0xffffffffu)};
    const std::vector<size_t> words = std::move(pairs_[key].words);
    changed_.clear();
    for (const size_t word : words) merge_in(word, merged, token);
    for (const uint64_t pair : changed_) queue_.push({pairs_[pair].count, pair});
    return true;
  }

 private:
  struct Pair {
    int64_t count = 0;
    std::vector<size_t> words;  // where it occurs, and maybe some where it no longer does
  };

  static std::vector<int32_t> bytes_of(std::string_view word) {
    std::vector<int32_t> tokens;
    for (const char c : word) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }

  void count_pairs(size_t index, int64_t sign) {
    const Word& word = words_[index];
    for (size_t i = 0; i + 1 < word.tokens.size(); ++i) {
      const uint64_t key = pair_key({word.tokens[i], word.tokens[i + 1]});
      Pair& pair = pairs_[key];
      pair.count += sign * word.count;
      if (sign > 0 && (pair.words.empty() || pair.words.back() != index)) pair.words.push_back(index);
      changed_.push_back(key);
    }
  }

  void merge_in(size_t index, TokenPair pair, int32_t token) {
    std::vector<int32_t>& tokens = words_[index].tokens;
    const auto at = [&](size_t i) {
      return i + 1 < tokens.size() && TokenPair(tokens[i], tokens[i + 1]) == pair;
    };
    size_t first = 0;
    while (first < tokens.size() && !at(first)) ++first;
    if (first == tokens.size()) return;
    count_pairs(index, -1);
    size_t kept = 0;
    for (size_t i = 0; i < tokens.size(); ++kept) {
      const bool here = at(i);
      const int32_t value = here ? token : tokens[i];
      i += here ? 2 : 1;
      tokens[kept] = value;
    }
    tokens.resize(kept);
    count_pairs(index, +1);
  }

  // Counts in the queue may be out of date; every pair stands there with at least its count.
  uint64_t pop_most_frequent() {
    while (!queue_.empty()) {
      const PairCount top = queue_.top();
      queue_.pop();
      const int64_t count = pairs_[top.key].count;
      if (count == top.count) return top.key;
      if (count < top.count && count > 0) queue_.push({count, top.key});
    }
    return 0;
  }

  std::vector<Word> words_;
  std::unordered_map<uint64_t, Pair> pairs_;
  std::priority_queue<PairCount> queue_;
  std::vector<uint64_t> changed_;
};

}  // namespace

std::vector<TokenPair> train_merges(std::string_view text, int64_t vocabulary) {
  MergeTrainer trainer(text);
  std::vector<TokenPair> merges;
  TokenPair pair;
  while (std::cmp_less(256 + merges.size(), vocabulary)) {
    if (!trainer.merge(static_cast<int32_t>(256 + merges.size()), pair)) break;
    merges.push_back(pair);
  }
  return merges;
}

}  // namespace phalanx
