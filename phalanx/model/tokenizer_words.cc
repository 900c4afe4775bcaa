#define PCRE2_CODE_UNIT_WIDTH 8
#include "phalanx/model/tokenizer_words.h"

#include <pcre2.h>

#include "phalanx/base/check.h"
#include "phalanx/model/utf8.h"

namespace phalanx {
namespace {

// A. Radford et al., "Language models are unsupervised multitask learners", 2019: the pattern of the released
// code.
constexpr std::string_view kPattern =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

}  // namespace

struct WordSplitter::Pattern {
  Pattern() {
    int error = 0;
    size_t at = 0;
    code = pcre2_compile(units(kPattern), kPattern.size(), PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr);
    PHX_CHECK(code != nullptr, "PCRE2 error {} at {}", error, at);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it cannot, matching interprets
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;
  ~Pattern() { pcre2_code_free(code); }

  pcre2_code* code = nullptr;
};

WordSplitter::WordSplitter() : pattern_(std::make_unique<Pattern>()) {}
WordSplitter::~WordSplitter() = default;

void WordSplitter::split_valid(std::string_view text, std::vector<std::string_view>& words) const {
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(
      pcre2_match_data_create_from_pattern(pattern_->code, nullptr));
  const size_t* ends = pcre2_get_ovector_pointer(match.get());
  while (!text.empty()) {
    // UTF-8 is known to hold: checking it again for every word would take time quadratic in the text's
    // length.
    const int found =
        pcre2_match(pattern_->code, units(text), text.size(), 0, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    PHX_CHECK(found > 0 && ends[0] == 0 && ends[1] > 0, "PCRE2 answers {} at \"{}\"", found,
              text.substr(0, 20));
    words.push_back(text.substr(0, ends[1]));
    text.remove_prefix(ends[1]);
  }
}

std::vector<std::string_view> WordSplitter::split(std::string_view text) const {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const size_t valid = utf8_prefix(text);
    split_valid(text.substr(0, valid), words);
    text.remove_prefix(valid);
    size_t broken = 0;
    while (broken < text.size() && utf8_at(text, broken).length == 0) ++broken;
    if (broken > 0) words.push_back(text.substr(0, broken));
    text.remove_prefix(broken);
  }
  return words;
}

}  // namespace phalanx
