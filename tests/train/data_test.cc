#include "phalanx/train/data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "phalanx/base/error.h"
#include "phalanx/ops/cross_entropy.h"

namespace phalanx {
namespace {

using testing::HasSubstr;

std::string random_text(std::mt19937& random, size_t size) {
  std::string text;
  while (text.size() < size) text += static_cast<char>('a' + random() % 20);
  return text;
}

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::vector<int32_t> ids(const Tensor& t) { return {t.data<int32_t>(), t.data<int32_t>() + t.numel()}; }

DataConfig bytes(double validation_fraction = 0.1) {
  return {.tokenizer = TokenizerKind::bytes, .validation_fraction = validation_fraction};
}

TEST(Dataset, SplitsAsNanoGptDoes) {
  std::mt19937 random(1);
  const Dataset data(random_text(random, 1'115'394), bytes(), 64, 1);
  EXPECT_EQ(data.train_tokens(), 1'003'854);  // nanoGPT's numbers for tinyshakespeare
  EXPECT_EQ(data.validation_tokens(), 111'540);
}

TEST(Dataset, SplitsBetweenCharacters) {
  const std::string text = "ééééééééé漢";  // 10 characters
  const Dataset data(text, bytes(), 1, 1);
  EXPECT_EQ(data.train_tokens(), 18);
  EXPECT_EQ(data.validation_tokens(), 3);
  const Dataset characters(text, {.validation_fraction = 0.2}, 1, 1);
  EXPECT_EQ(characters.train_tokens(), 8);
  EXPECT_EQ(characters.validation_tokens(), 2);
  EXPECT_EQ(characters.tokenizer().vocabulary(), 2);  // made from the whole text
}

TEST(Dataset, RowsAreConsecutiveTextAndItsNextTokens) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const std::string text = random_text(random, 500);
  const int64_t context = random() % 20 + 1;
  const Dataset data(text, bytes(), context, seed);
  const RowShare share = row_share(6, 3, 1, 0);
  for (int64_t step = 0; step < 20; ++step) {
    const std::vector<Batch> batches = data.train_batches(step, share);
    for (int64_t m = 0; m < share.microbatches(); ++m) {
      const Batch& b = batches[static_cast<size_t>(m)];
      for (int64_t r = 0; r < 3; ++r) {
        const auto offset = static_cast<size_t>(data.train_offset(step, 3 * m + r));
        ASSERT_LE(offset + static_cast<size_t>(context), 449u);
        for (int64_t i = 0; i < context; ++i) {
          const auto at = static_cast<size_t>(r * context + i);
          EXPECT_EQ(b.tokens.span<int32_t>()[at], text[offset + static_cast<size_t>(i)]);
          EXPECT_EQ(b.targets.span<int32_t>()[at], text[offset + static_cast<size_t>(i) + 1]);
          EXPECT_EQ(b.positions.span<int32_t>()[at], i);
          EXPECT_EQ(b.rows.span<int64_t>()[at], (3 * m + r) * context + i);
        }
        EXPECT_EQ(b.sequence_offsets.span<int64_t>()[static_cast<size_t>(r)], r * context);
      }
      EXPECT_EQ(b.sequence_offsets.span<int64_t>()[3], 3 * context);
    }
  }
}

// Behind each "ab" a document ends: what follows is a sequence of its own, and no target of what precedes.
TEST(Dataset, RowsHoldDocumentsOneBehindTheOther) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::string text;
  while (text.size() < 400) text += static_cast<char>('a' + random() % 3);
  const auto begins = [&](size_t at) { return at >= 2 && text.substr(at - 2, 2) == "ab"; };
  DataConfig config = bytes();
  config.documents = "ab";
  const int64_t context = random() % 30 + 1;
  const Dataset data(text, config, context, seed);
  for (int64_t step = 0; step < 20; ++step) {
    const Batch b = data.train_batches(step, row_share(3, 3, 1, 0)).front();
    std::vector<int64_t> offsets;
    std::vector<int32_t> positions;
    std::vector<int32_t> targets;
    for (int64_t r = 0; r < 3; ++r) {
      const int64_t offset = data.train_offset(step, r);
      for (int64_t i = 0; i < context; ++i) {
        const auto at = static_cast<size_t>(offset + i);
        EXPECT_EQ(b.tokens.span<int32_t>()[positions.size()], text[at]);
        if (i == 0 || begins(at)) offsets.push_back(r * context + i);
        positions.push_back(static_cast<int32_t>(r * context + i - offsets.back()));
        targets.push_back(begins(at + 1) ? kIgnore : text[at + 1]);
      }
    }
    offsets.push_back(3 * context);
    EXPECT_EQ(ids(b.positions), positions);
    EXPECT_EQ(ids(b.targets), targets);
    const auto told = b.sequence_offsets.span<const int64_t>();
    EXPECT_EQ(std::vector<int64_t>(told.begin(), told.end()), offsets);
  }
}

TEST(Dataset, NoTokenBelongsToTwoDocuments) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += "one, and another.\n\nThe next";
  const DataConfig config = {.tokenizer = TokenizerKind::bpe, .bpe_vocabulary = 400, .documents = "\n\n"};
  const Dataset data(text, config, 50, 1);
  const Batch b = data.train_batches(0, row_share(8, 8, 1, 0)).front();
  const auto offsets = b.sequence_offsets.span<const int64_t>();
  EXPECT_GT(offsets.size(), 8u + 8u);
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const auto tokens = b.tokens.slice(offsets[s], offsets[s + 1]).span<const int32_t>();
    const std::string document = data.tokenizer().decode(tokens);
    const size_t inside = document.substr(0, std::max<size_t>(document.size(), 2) - 2).find("\n\n");
    EXPECT_EQ(inside, std::string::npos) << document;
  }
}

using Rows = std::map<int64_t, std::pair<std::vector<int32_t>, std::vector<int32_t>>>;

// By row number: tokens and targets. Every row must come once.
void collect(Rows& rows, const Batch& b, int64_t context) {
  for (int64_t r = 0; r < b.sequence_offsets.rows() - 1; ++r) {
    const int64_t row = b.rows.data<int64_t>()[r * context] / context;
    const bool added = rows.emplace(row, std::pair(ids(b.tokens.slice(r * context, (r + 1) * context)),
                                                   ids(b.targets.slice(r * context, (r + 1) * context))))
                           .second;
    EXPECT_TRUE(added) << "row " << row << " twice";
  }
}

TEST(Dataset, EveryLayoutAndMicrobatchHoldsTheSameRows) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const Dataset data(random_text(random, 700), bytes(), 7, seed);
  constexpr int64_t kBatch = 24;
  for (int64_t step = 0; step < 3; ++step) {
    Rows one;
    collect(one, data.train_batches(step, row_share(kBatch, 0, 1, 0)).front(), 7);
    ASSERT_EQ(one.size(), 24u);
    ASSERT_EQ(one.rbegin()->first, 23);
    for (const int ranks : {1, 2, 3, 4, 6, 8, 12, 24}) {
      for (const int64_t microbatch : {0, 1, 2, 3, 4, 6, 8, 12}) {
        if (microbatch > 0 && kBatch / ranks % microbatch != 0) continue;
        Rows many;
        for (int rank = 0; rank < ranks; ++rank) {
          const RowShare share = row_share(kBatch, microbatch, ranks, rank);
          for (const Batch& b : data.train_batches(step, share)) collect(many, b, 7);
        }
        EXPECT_EQ(many, one) << ranks << " ranks, microbatch " << microbatch;
      }
    }
  }
}

TEST(Dataset, ValidationIsTheSameEveryTimeAndInEveryLayout) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const std::string text = random_text(random, 1000);
  const Dataset data(text, bytes(), 7, seed);
  for (const int64_t batches : {0, 1, 3}) {
    Rows one;
    for (const Batch& b : data.validation(batches, row_share(12, 0, 1, 0))) collect(one, b, 7);
    for (const auto& [ranks, microbatch] : {std::pair(2, 0), {4, 1}, {3, 2}, {12, 1}}) {
      Rows many;
      for (int rank = 0; rank < ranks; ++rank) {
        const RowShare share = row_share(12, microbatch, ranks, rank);
        size_t count = 0;
        for (const Batch& b : data.validation(batches, share)) {
          collect(many, b, 7);
          ++count;
        }
        EXPECT_EQ(count, data.validation(batches, row_share(12, microbatch, ranks, 0)).size());
      }
      if (batches == 0) {  // filled up to a different number of rows
        std::erase_if(many, [&](const auto& item) { return !one.contains(item.first); });
        std::erase_if(one, [&](const auto& item) { return !many.contains(item.first); });
      }
      EXPECT_EQ(many, one);
    }
  }
}

TEST(Dataset, WholeValidationCountsEveryTargetOnce) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 30; ++i) {
    const std::string text = random_text(random, 300 + random() % 300);
    const int64_t context = random() % 20 + 1;
    const Dataset data(text, bytes(), context, seed);
    const auto begin = static_cast<size_t>(data.train_tokens());
    const int ranks = static_cast<int>(random() % 4) + 1;
    Rows rows;
    for (int rank = 0; rank < ranks; ++rank) {
      for (const Batch& b : data.validation(0, row_share(2 * ranks, 1, ranks, rank)))
        collect(rows, b, context);
    }
    std::string targets;
    for (const auto& [row, content] : rows) {
      for (size_t t = 0; t < content.second.size(); ++t) {
        if (content.second[t] == kIgnore) continue;
        EXPECT_EQ(content.first[t], static_cast<unsigned char>(text[begin + targets.size()]));
        targets += static_cast<char>(content.second[t]);
      }
    }
    EXPECT_EQ(targets, text.substr(begin + 1));
  }
}

TEST(Dataset, OffsetsCoverTheTextEvenly) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const Dataset data(random_text(random, 20), bytes(0), 10, seed);
  std::map<int64_t, int> counts;
  constexpr int kDraws = 20'000;
  for (int i = 0; i < kDraws; ++i) ++counts[data.train_offset(i / 8, i % 8)];
  ASSERT_EQ(counts.size(), 10u);  // 0 … 9: the last has its last target at the end of the text
  for (const auto& [offset, count] : counts)
    EXPECT_NEAR(count, kDraws / 10, 6 * 42) << offset;  // 6 deviations
}

TEST(Dataset, SeedStepAndRowTellDrawsApart) {
  std::mt19937 random(3);
  const std::string text = random_text(random, 100'000);
  const Dataset one(text, bytes(), 10, 1);
  const Dataset two(text, bytes(), 10, 2);
  std::set<int64_t> offsets;
  for (int64_t i = 0; i < 10; ++i) {
    offsets.insert({one.train_offset(0, i), one.train_offset(i + 1, 0), two.train_offset(0, i)});
  }
  EXPECT_GE(offsets.size(), 28u);
  EXPECT_EQ(one.train_offset(3, 4), Dataset(text, bytes(), 10, 1).train_offset(3, 4));
}

TEST(Dataset, TakesACheckpointsTokenizer) {
  const Dataset data("abab", {.validation_fraction = 0}, 2, 1,
                     make_tokenizer(TokenizerKind::characters, "abc", 0));
  EXPECT_EQ(data.tokenizer().vocabulary(), 3);
  EXPECT_THAT(refusal([] {
                Dataset("abxb", {.validation_fraction = 0}, 2, 1,
                        make_tokenizer(TokenizerKind::characters, "abc", 0));
              }),
              HasSubstr("character 'x' (U+0078) at position 2"));
}

TEST(Dataset, BpeLearnsFromTheTrainingPartAlone) {
  std::string text;
  for (int i = 0; i < 90; ++i) text += "ab";
  for (int i = 0; i < 10; ++i) text += "cd";
  const Dataset data(
      text, {.tokenizer = TokenizerKind::bpe, .bpe_vocabulary = 300, .validation_fraction = 0.1}, 2, 1);
  for (int32_t id = 256; id < data.tokenizer().vocabulary(); ++id) {
    EXPECT_EQ(data.tokenizer().bytes(id).find_first_of("cd"), std::string_view::npos);
  }
  EXPECT_GT(data.tokenizer().vocabulary(), 256);
  EXPECT_EQ(data.validation_tokens(), 20);
}

TEST(Dataset, TooShortTextsSaySo) {
  EXPECT_EQ(refusal([] { Dataset("", bytes(), 4, 1); }), "the text is empty");
  EXPECT_EQ(
      refusal([] { Dataset("abcd", bytes(0), 4, 1); }),
      "the training part has 4 tokens, but one sequence of model.context 4 needs 5: take a longer text or a "
      "smaller context");
  EXPECT_EQ(refusal([] { Dataset("abcde", bytes(0), 4, 1); }), "no error");
  EXPECT_THAT(refusal([] { Dataset(std::string(40, 'a'), bytes(), 4, 1); }),
              HasSubstr("the validation part has 4 tokens"));
  EXPECT_EQ(refusal([] { Dataset(std::string(50, 'a'), bytes(), 4, 1); }), "no error");
}

TEST(Dataset, NoValidationPartGivesNoBatches) {
  const Dataset data("abcdefgh", bytes(0), 4, 1);
  EXPECT_TRUE(data.validation(3, row_share(2, 0, 1, 0)).empty());
  EXPECT_TRUE(data.validation(0, row_share(2, 0, 1, 0)).empty());
}

TEST(Dataset, FilesThatCannotBeRead) {
  const auto load = [](const std::string& path) {
    return refusal([&] { load_dataset({.text = path}, 4, 1); });
  };
  EXPECT_THAT(load("/nowhere/text.txt"), HasSubstr("data.text: cannot read /nowhere/text.txt: No such file"));
  EXPECT_THAT(load("/"), HasSubstr("data.text: cannot read /: not a regular file"));
  const std::string path = testing::TempDir() + "phalanx_data_test.txt";
  std::ofstream(path).close();
  EXPECT_EQ(load(path), path + ": the text is empty");
  std::ofstream(path) << "ab\xff";
  EXPECT_THAT(load(path), HasSubstr(path + ": byte 0xff at offset 2 is no UTF-8"));
  std::ofstream(path) << std::string(100, 'a');
  EXPECT_EQ(load(path), "no error");
  std::filesystem::remove(path);
}

TEST(RowShare, RefusesWhatDoesNotDivide) {
  EXPECT_EQ(refusal([] { row_share(10, 0, 4, 0); }),
            "train.batch 10 is not a multiple of the 4 data-parallel ranks");
  EXPECT_THAT(refusal([] { row_share(12, 4, 2, 0); }),
              HasSubstr("train.microbatch 4 does not divide the 6 sequences"));
  EXPECT_EQ(row_share(12, 0, 4, 3).microbatch, 3);
  EXPECT_EQ(row_share(12, 1, 4, 3).microbatches(), 3);
  EXPECT_EQ(row_share(12, 1, 4, 3).first_row(2), 11);
}

}  // namespace
}  // namespace phalanx
