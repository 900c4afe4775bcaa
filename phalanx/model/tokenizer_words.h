// The pieces inside which byte pairs are merged.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

namespace phalanx {

/// Splits text as GPT-2 does: contractions, letters, digits, other signs (each with one space before), white
/// space. The pieces together are the text; bytes that are no UTF-8 stand in pieces of their own.
class WordSplitter {
 public:
  WordSplitter();
  ~WordSplitter();
  /// Views into `text`. May be called by several threads at once.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Pattern;
  void split_valid(std::string_view text, std::vector<std::string_view>& words) const;

  std::unique_ptr<Pattern> pattern_;
};

}  // namespace phalanx
