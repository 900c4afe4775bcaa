#include "phalanx/model/tokenizer_bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

using testing::ElementsAre;

using Tokens = std::vector<int32_t>;

Tokens bytes_of(std::string_view word) {
  Tokens tokens;
  for (const char c : word) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

Tokens merge(const Tokens& tokens, TokenPair pair, int32_t id) {
  Tokens out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i + 1 < tokens.size() && TokenPair(tokens[i], tokens[i + 1]) == pair) {
      out.push_back(id);
      ++i;
    } else {
      out.push_back(tokens[i]);
    }
  }
  return out;
}

// The definition: count all pairs of all words, merge the most frequent, again.
std::vector<TokenPair> merges_by_definition(std::string_view text, int64_t vocabulary) {
  std::vector<Tokens> words;
  for (const std::string_view word : WordSplitter().split(text)) words.push_back(bytes_of(word));
  std::vector<TokenPair> merges;
  while (std::cmp_less(256 + merges.size(), vocabulary)) {
    std::map<TokenPair, int64_t> counts;
    for (const Tokens& word : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) ++counts[{word[i], word[i + 1]}];
    }
    std::pair<TokenPair, int64_t> best = {{0, 0}, 1};
    for (const auto& [pair, count] : counts) {
      if (count > best.second) best = {pair, count};
    }
    if (best.second < 2) break;
    for (Tokens& word : words) word = merge(word, best.first, static_cast<int32_t>(256 + merges.size()));
    merges.push_back(best.first);
  }
  return merges;
}

// The definition: all merges in the order in which they were learnt.
Tokens encode_by_definition(std::string_view text, const std::vector<TokenPair>& merges) {
  Tokens all;
  for (const std::string_view word : WordSplitter().split(text)) {
    Tokens tokens = bytes_of(word);
    for (size_t i = 0; i < merges.size(); ++i)
      tokens = merge(tokens, merges[i], static_cast<int32_t>(256 + i));
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  return all;
}

std::string random_text(std::mt19937& random, size_t size) {
  const size_t letters = random() % 5 + 2;
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    const unsigned roll = random() % 10;
    text += roll == 0   ? ' '
            : roll == 1 ? static_cast<char>(random() % 256)
                        : static_cast<char>('a' + random() % letters);
  }
  return text;
}

TEST(Bpe, LearnsAndEncodesAsDefined) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 40; ++i) {
    const std::string text = random_text(random, random() % 400);
    const int64_t vocabulary = 256 + random() % 80;
    const auto merges = train_merges(text, vocabulary);
    ASSERT_EQ(merges, merges_by_definition(text, vocabulary));
    const std::string other = random_text(random, 200);
    const BpeTokenizer tokenizer(merges);
    EXPECT_EQ(tokenizer.encode(text), encode_by_definition(text, merges));
    EXPECT_EQ(tokenizer.encode(other), encode_by_definition(other, merges));
  }
}

TEST(Bpe, TiesGoToTheSmallerPair) {
  EXPECT_THAT(train_merges("cd\nab\ncd\nab", 257), ElementsAre(TokenPair('a', 'b')));
  EXPECT_THAT(train_merges("", 300), ElementsAre());
  EXPECT_THAT(train_merges("abc", 300), ElementsAre());  // no pair occurs twice
  EXPECT_THAT(train_merges("aaaa", 300), ElementsAre(TokenPair('a', 'a')));
}

// One word of 200,000 letters: quadratic work would take minutes.
TEST(Bpe, LongWordsAreNotSlow) {
  const std::string text(200'000, 'a');
  const auto merges = train_merges(text, 270);
  const BpeTokenizer tokenizer(merges);
  const auto tokens = tokenizer.encode(text);
  EXPECT_EQ(tokenizer.decode(tokens), text);
  EXPECT_LT(tokens.size(), text.size() / 1000);
}

// What ranks that are threads do with the one tokenizer they share; for the thread sanitizer.
TEST(Bpe, ManyThreadsShareOne) {
  std::mt19937 random(5);
  const std::string text = random_text(random, 3000);
  const BpeTokenizer tokenizer(train_merges(text, 300));
  const Tokens expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      EXPECT_EQ(tokenizer.encode(text), expected);
      TextStream stream(tokenizer);
      for (const int32_t token : expected) stream.next(token);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Bpe, TooSmallAVocabulary) {
  EXPECT_THROW(make_tokenizer(TokenizerKind::bpe, "abc", 255), Error);
  EXPECT_EQ(make_tokenizer(TokenizerKind::bpe, "abc", 256)->vocabulary(), 256);
}

TEST(Words, SplitAsGpt2Does) {
  const WordSplitter splitter;
  EXPECT_THAT(
      splitter.split("Hello, world's 42nd  day!\n\n  It'll"),
      ElementsAre("Hello", ",", " world", "'s", " 42", "nd", " ", " day", "!", "\n\n ", " It", "'ll"));
  EXPECT_THAT(splitter.split("naïve 漢字 ٣٤"),
              ElementsAre("naïve", " 漢字", " ٣٤"));                           // Unicode letters and digits
  EXPECT_THAT(splitter.split("a\u00a0 b"), ElementsAre("a", "\u00a0", " b"));  // Unicode white space
  EXPECT_THAT(splitter.split("ab\xff\xfe"
                             "cd"),
              ElementsAre("ab", "\xff\xfe", "cd"));
  EXPECT_THAT(splitter.split("\xe6"), ElementsAre("\xe6"));
  EXPECT_THAT(splitter.split(""), ElementsAre());
  EXPECT_THAT(splitter.split("  "), ElementsAre("  "));
}

TEST(Words, LongRunsAreOnePiece) {
  const WordSplitter splitter;
  for (const char* unit : {"a", "漢", "7", "!", "\n", "\u00a0"}) {
    std::string text;
    for (int i = 0; i < 300'000; ++i) text += unit;
    EXPECT_THAT(splitter.split(text), ElementsAre(text)) << unit;
  }
  EXPECT_THAT(splitter.split(std::string(300'000, ' ') + "x"), ElementsAre(std::string(299'999, ' '), " x"));
}

TEST(Words, PiecesTogetherAreTheText) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const WordSplitter splitter;
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (unsigned n = random() % 60; n-- > 0;) {
      text += random() % 3 == 0 ? static_cast<char>(random() % 256) : " a'\n9."[random() % 6];
    }
    std::string joined;
    for (const std::string_view piece : splitter.split(text)) {
      EXPECT_FALSE(piece.empty());
      joined += piece;
    }
    EXPECT_EQ(joined, text);
  }
}

}  // namespace
}  // namespace phalanx
