#include "phalanx/comm/rank_page.h"

#include <cstring>

#include "phalanx/comm/failure.h"

namespace phalanx {

void RankPage::fail(std::string_view text) noexcept {
  copy_text(report, text);
  state.store(State::failed, std::memory_order_seq_cst);
}

// The state comes first: of a rank that has left, the recorder is then complete.
std::string RankPage::snapshot() const {
  std::vector<uint64_t> words = {static_cast<uint64_t>(state.load())};
  const std::vector<uint64_t> recorded = recorder.snapshot();
  words.insert(words.end(), recorded.begin(), recorded.end());
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint64_t)};
}

void RankPage::restore(std::string_view bytes) {
  std::vector<uint64_t> words(bytes.size() / sizeof(uint64_t));
  PHX_CHECK(!words.empty(), "a page of {} bytes", bytes.size());
  std::memcpy(words.data(), bytes.data(), words.size() * sizeof(uint64_t));
  recorder.restore(std::span(words).subspan(1));
  state.store(static_cast<State>(words[0]));
}

}  // namespace phalanx
