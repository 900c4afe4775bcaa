#include "phalanx/model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "phalanx/base/error.h"
#include "phalanx/model/utf8.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string random_bytes(std::mt19937& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random() % 256);
  return bytes;
}

// Letters, digits, signs, white space, accents, ideographs, emoji; few different ones, so that pairs repeat.
std::string random_text(std::mt19937& random, size_t size) {
  static const std::vector<std::string> parts = {"a", "b",  "the", " ", " ", "\n", "'s", "7", "é",
                                                 "ß", "漢", "字",  "😀", ".", "\t", "A",  "1", "\u00a0"};
  std::string text;
  while (size-- > 0) text += parts[random() % parts.size()];
  return text;
}

std::unique_ptr<Tokenizer> reloaded(const Tokenizer& tokenizer) {
  return load_tokenizer(tokenizer.json(), "copy");
}

TEST(Tokenizer, CharactersAreSortedByCodePoint) {
  const auto t = make_tokenizer(TokenizerKind::characters, "hello, é😀\n", 0);
  EXPECT_EQ(t->vocabulary(), 9);
  EXPECT_EQ(t->bytes(0), "\n");
  EXPECT_EQ(t->bytes(8), "😀");
  EXPECT_THAT(t->encode("hello"), ElementsAre(4, 3, 5, 5, 6));
  EXPECT_THAT(t->encode("é😀"), ElementsAre(7, 8));
  EXPECT_EQ(t->decode(t->encode("oé\nl")), "oé\nl");
  EXPECT_THAT(t->encode(""), ElementsAre());
}

TEST(Tokenizer, UnknownCharactersAreNamedWithTheirPosition) {
  const auto t = make_tokenizer(TokenizerKind::characters, "abcé", 0);
  EXPECT_EQ(refusal([&] { t->encode("aéßa"); }),
            "character 'ß' (U+00DF) at position 2 is none of the 4 in the vocabulary");
  EXPECT_EQ(refusal([&] { t->encode("ab\n"); }),
            "character U+000A at position 2 is none of the 4 in the vocabulary");
}

TEST(Tokenizer, CharactersNeedUtf8) {
  EXPECT_THAT(refusal([] { make_tokenizer(TokenizerKind::characters, "ab\xff", 0); }),
              HasSubstr("byte 0xff at offset 2 is no UTF-8"));
  const auto t = make_tokenizer(TokenizerKind::characters, "ab", 0);
  EXPECT_THAT(refusal([&] { t->encode("a\xc3"); }), HasSubstr("byte 0xc3 at offset 1 is no UTF-8"));
  EXPECT_THAT(refusal([] { make_tokenizer(TokenizerKind::characters, "", 0); }), HasSubstr("empty text"));
}

TEST(Tokenizer, EveryTextComesBack) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 60; ++i) {
    const std::string text = random_text(random, random() % 300 + 1);
    for (const auto kind : {TokenizerKind::characters, TokenizerKind::bytes, TokenizerKind::bpe}) {
      const auto t = make_tokenizer(kind, text, 256 + random() % 60);
      const auto tokens = t->encode(text);
      EXPECT_EQ(t->decode(tokens), text);
      const auto copy = reloaded(*t);
      EXPECT_EQ(copy->vocabulary(), t->vocabulary());
      EXPECT_EQ(copy->encode(text), tokens);
      EXPECT_EQ(copy->json(), t->json());
      for (const int32_t token : tokens) EXPECT_TRUE(token >= 0 && token < t->vocabulary()) << token;
    }
  }
}

TEST(Tokenizer, BytesAndBpeTakeAnyBytes) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 60; ++i) {
    std::string text = random_bytes(random, random() % 200);
    text += random_text(random, random() % 50);
    if (!text.empty()) text.insert(random() % text.size(), random_bytes(random, 3));
    const std::string other = random_text(random, 20) + random_bytes(random, random() % 20);
    for (const auto kind : {TokenizerKind::bytes, TokenizerKind::bpe}) {
      const auto t = make_tokenizer(kind, text, 300);
      EXPECT_EQ(t->decode(t->encode(text)), text);
      EXPECT_EQ(t->decode(t->encode(other)), other);  // also what it was not made from
    }
  }
}

// Cutting anywhere, tokens give the same text; nothing that came out is ever taken back.
TEST(TextStream, GivesTheSameTextAsDecodingAtOnce) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 60; ++i) {
    const std::string text = random_text(random, random() % 100);
    for (const auto kind : {TokenizerKind::bytes, TokenizerKind::bpe}) {
      const auto t = make_tokenizer(kind, text, 256 + random() % 30);
      TextStream stream(*t);
      std::string given;
      for (const int32_t token : t->encode(text)) {
        given += stream.next(token);
        ASSERT_EQ(utf8_prefix(given), given.size());
      }
      EXPECT_EQ(given, text);  // nothing is held back longer than needed
      EXPECT_EQ(stream.finish(), "");
    }
  }
}

TEST(TextStream, HoldsBackAnUnfinishedCharacter) {
  const auto t = make_tokenizer(TokenizerKind::bytes, "", 0);
  TextStream stream(*t);
  EXPECT_EQ(stream.next(0xf0), "");
  EXPECT_EQ(stream.next(0x9f), "");
  EXPECT_EQ(stream.next(0x98), "");
  EXPECT_EQ(stream.next(0x80), "😀");
  EXPECT_EQ(stream.next(0xe6), "");
  EXPECT_EQ(stream.next('a'), "\ufffda");
  EXPECT_EQ(stream.next(0xff), "\ufffd");  // can never become a character
  EXPECT_EQ(stream.next(0xc3), "");
  EXPECT_EQ(stream.finish(), "\ufffd");
  EXPECT_EQ(stream.finish(), "");
}

TEST(TextStream, AlwaysGivesUtf8) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto t = make_tokenizer(TokenizerKind::bytes, "", 0);
  for (int i = 0; i < 300; ++i) {
    TextStream stream(*t);
    std::string given;
    for (const int32_t token : t->encode(random_bytes(random, random() % 30))) given += stream.next(token);
    given += stream.finish();
    EXPECT_EQ(utf8_prefix(given), given.size());
  }
}

TEST(Tokenizer, DamagedFilesAreNamed) {
  const auto load = [](const std::string& json) {
    return refusal([&] { load_tokenizer(json, "tokenizer.json"); });
  };
  EXPECT_THAT(load(""), HasSubstr("tokenizer.json: not a tokenizer: "));
  EXPECT_THAT(load("{\"\xff"), HasSubstr("\uFFFD"));
  EXPECT_THAT(load("[]"), HasSubstr("tokenizer.json: not a tokenizer: "));
  EXPECT_THAT(load(R"({"kind":"word"})"), HasSubstr("its kind \"word\" is none of char, byte, bpe"));
  EXPECT_THAT(load(R"({"kind":"char"})"), HasSubstr("characters"));
  EXPECT_THAT(load(R"({"kind":"char","characters":[]})"), HasSubstr("it has no characters"));
  EXPECT_THAT(load(R"({"kind":"char","characters":["b","a"]})"), HasSubstr("not in ascending order"));
  EXPECT_THAT(load(R"({"kind":"char","characters":["a","a"]})"), HasSubstr("not in ascending order"));
  EXPECT_THAT(load(R"({"kind":"char","characters":["ab"]})"), HasSubstr("\"ab\" is not one character"));
  EXPECT_THAT(load(R"({"kind":"char","characters":[""]})"), HasSubstr("is not one character"));
  EXPECT_THAT(load(R"({"kind":"char","characters":[1]})"), HasSubstr("not a tokenizer"));
  EXPECT_THAT(load(R"({"kind":"bpe","merges":[[97,98],[257,99]]})"),
              HasSubstr("merge 1 joins tokens 257 and 99"));
  EXPECT_THAT(load(R"({"kind":"bpe","merges":[[-1,98]]})"), HasSubstr("merge 0 joins tokens -1 and 98"));
  EXPECT_THAT(load(R"({"kind":"bpe","merges":[[1]]})"), HasSubstr("not a tokenizer"));
  EXPECT_EQ(load(R"({"kind":"byte"})"), "no error");
}

TEST(Utf8, KnowsWhatCanStillBecomeACharacter) {
  // Against all characters: their proper beginnings are unfinished, everything else is not.
  const auto known = [](std::string_view bytes) {
    for (int32_t code = 0; code < 0x110000; code += code < 0x3000 || code > 0xffff ? 7 : 1) {
      if (code == 0xd800) code = 0xe000;
      const std::string text = utf8_text(code);
      if (text.size() > bytes.size() && text.starts_with(bytes)) return true;
    }
    return false;
  };
  for (int first = 0; first < 256; ++first) {
    EXPECT_EQ(utf8_unfinished(std::string(1, static_cast<char>(first))), first >= 0xc2 && first <= 0xf4)
        << first;
  }
  for (const std::string_view bytes :
       {"\xe0\xa0", "\xe0\x9f", "\xed\x9f", "\xed\xa0", "\xf0\x90", "\xf0\x8f", "\xf4\x8f", "\xf4\x90",
        "\xf0\x90\x80", "\xe6\x20", "\xf1\x80\x41", "\xc3\xa9"}) {
    EXPECT_EQ(utf8_unfinished(bytes), known(bytes)) << testing::PrintToString(std::string(bytes));
  }
  EXPECT_FALSE(utf8_unfinished(""));
}

TEST(Utf8, RefusesOverlongAndSurrogates) {
  EXPECT_EQ(utf8_at("\xc0\x80", 0).length, 0u);
  EXPECT_EQ(utf8_at("\xed\xa0\x80", 0).length, 0u);
  EXPECT_EQ(utf8_at("\xf4\x90\x80\x80", 0).length, 0u);
  EXPECT_EQ(utf8_at("xé", 1).length, 2u);
  EXPECT_EQ(utf8_at("xé", 1).code, 0xe9);
  EXPECT_EQ(utf8_at(std::string_view("\0", 1), 0).length, 1u);
}

}  // namespace
}  // namespace phalanx
