// The text that a model learns from: which tokens each row of each step holds, the same in every layout.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "phalanx/base/philox.h"
#include "phalanx/model/layer.h"
#include "phalanx/model/tokenizer.h"

namespace phalanx {

struct DataConfig {
  std::string text = "data/shakespeare.txt";
  TokenizerKind tokenizer = TokenizerKind::characters;
  int64_t bpe_vocabulary = 1024;     ///< at most; bpe only
  std::string documents;             ///< the text behind which a document ends; empty: there is one
  double validation_fraction = 0.1;  ///< of the text's characters, at its end; 0: no validation
};

/// The rows (sequences) of a step that one data-parallel rank computes. In each microbatch the ranks hold
/// consecutive runs, in order, so that over ranks and microbatches every row 0 … batch − 1 occurs once.
struct RowShare {
  int64_t batch = 0;       ///< rows of a step, over all ranks
  int64_t microbatch = 0;  ///< rows of one rank in one microbatch
  int ranks = 1;           ///< of dp
  int rank = 0;            ///< this one's dp coordinate
  ContextShare context;    ///< of the tokens of a microbatch, those that are this rank's of cp
  int depths = 0;          ///< of multi-token prediction: what lies ahead comes along
  int slices = 1;          ///< of a microbatch, along its sequences

  int64_t microbatches() const { return batch / (microbatch * ranks); }
  int64_t first_row(int64_t m) const { return (m * ranks + rank) * microbatch; }
};
/// Without cp. `microbatch` 0: the rank's whole share at once. Error: the batch does not divide.
RowShare row_share(int64_t batch, int64_t microbatch, int ranks, int rank);

/// Token ids of a text, cut into training and validation. Immutable: ranks that are threads share one.
class Dataset {
 public:
  /// The first characters of `text` train, the last validation_fraction validate (as in nanoGPT; where the
  /// text is no UTF-8, continuation bytes belong to what stands before). `tokenizer` is a checkpoint's, or
  /// null: made from the text (bpe: from its training part). `seed` names the draws of rows. Error: empty, or
  /// too short for one sequence of `context` tokens and its last target; a character that is not in the
  /// vocabulary.
  Dataset(std::string_view text, const DataConfig& config, int64_t context, uint64_t seed,
          std::unique_ptr<Tokenizer> tokenizer = nullptr);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  int64_t context() const { return context_; }
  int64_t train_tokens() const { return static_cast<int64_t>(train_.tokens.size()); }
  int64_t validation_tokens() const { return static_cast<int64_t>(validation_.tokens.size()); }

  /// Of all tokens.
  uint64_t checksum() const;

  /// Where row `row` of step `step` begins among the training tokens: uniform over all places where context +
  /// 1 tokens follow, by Philox from (seed, "data", step, row).
  int64_t train_offset(int64_t step, int64_t row) const;
  /// The batches of a step, for one rank: its microbatches, or the slices of each (model/slices.h). A row may
  /// hold parts of several documents: each is a sequence of its own, and its last token has no target. All
  /// others have.
  std::vector<Batch> train_batches(int64_t step, const RowShare& share) const;

  /// What this rank evaluates: `batches` · share.batch rows drawn from the validation tokens by a stream of
  /// their own, the same at every evaluation; 0: all validation tokens once, in consecutive rows, filled up
  /// with ignored targets; as train_batches has them. Empty when there is no validation part.
  std::vector<Batch> validation(int64_t batches, const RowShare& share) const;

 private:
  struct Part {
    std::vector<int32_t> tokens;
    std::vector<int64_t> documents;  // where they begin, ascending
  };

  Part encode(std::string_view text, const std::string& separator) const;
  Batch batch_of(int64_t first_row, const Part& part, const std::vector<int64_t>& offsets) const;

  std::unique_ptr<Tokenizer> tokenizer_;
  int64_t context_;
  RandomStream train_stream_;
  RandomStream validation_stream_;
  Part train_;
  Part validation_;
};

/// The dataset of the file config.text. Error: as above, or the file is missing or unreadable.
Dataset load_dataset(const DataConfig& config, int64_t context, uint64_t seed,
                     std::unique_ptr<Tokenizer> tokenizer = nullptr);

}  // namespace phalanx
