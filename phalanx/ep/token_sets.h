// Sets of a rank's tokens as bits: which of them go to each expert.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "phalanx/tensor/tensor.h"

namespace phalanx::ep {

/// One set of tokens for each of some experts, in borrowed memory: bit t % 64 of word t / 64.
class TokenSets {
 public:
  /// Words of one set.
  static int64_t words(int64_t tokens) { return (tokens + 63) / 64; }

  TokenSets(uint64_t* bits, int64_t sets, int64_t words_each)
      : bits_(bits), sets_(sets), words_(words_each) {}
  /// Of an i64 tensor [sets, words].
  explicit TokenSets(const Tensor& t)
      : TokenSets(reinterpret_cast<uint64_t*>(t.data<int64_t>()), t.dim(0), t.dim(1)) {}

  int64_t sets() const { return sets_; }
  void clear() const { std::fill_n(bits_, sets_ * words_, uint64_t{0}); }
  void add(int64_t set, int64_t token) const { word(set, token / 64) |= uint64_t{1} << (token % 64); }
  bool has(int64_t set, int64_t token) const { return word(set, token / 64) >> (token % 64) & 1; }
  /// How many tokens a set has; how many below `token`.
  int64_t count(int64_t set) const { return count_before(set, 64 * words_); }
  int64_t count_before(int64_t set, int64_t token) const {
    int64_t n = 0;
    for (int64_t w = 0; w < token / 64; ++w) n += std::popcount(word(set, w));
    if (token % 64 != 0) n += std::popcount(word(set, token / 64) << (64 - token % 64));
    return n;
  }
  /// Adds every token that is in one of them to the only set of `to`.
  void unite_into(const TokenSets& to) const {
    for (int64_t s = 0; s < sets_; ++s) {
      for (int64_t w = 0; w < words_; ++w) to.word(0, w) |= word(s, w);
    }
  }

 private:
  uint64_t& word(int64_t set, int64_t w) const { return bits_[set * words_ + w]; }

  uint64_t* bits_;
  int64_t sets_;
  int64_t words_;
};

}  // namespace phalanx::ep
