// Just enough of XML to tell whether a chart is.
#pragma once

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx::testing {

// Reads the XML that charts are made of: tags, attributes in double quotes, text, five entities.
class XmlReader {
 public:
  explicit XmlReader(std::string_view text) : left_(text) {}

  // Where it is no XML any more; empty if it is.
  std::string fault() {
    while (!left_.empty()) {
      const std::string_view at = left_.substr(0, 100);
      if (!(left_[0] == '<' ? tag() : text("<"))) return std::string(at);
    }
    return open_.empty() ? "" : "not closed: " + open_.back();
  }

 private:
  // Reads text up to one of `ends`.
  bool text(std::string_view ends) {
    while (!left_.empty() && ends.find(left_[0]) == std::string_view::npos) {
      if (left_[0] == '<' || left_[0] == '>') return false;
      if (left_[0] == '&' && std::ranges::none_of(kEntities, [&](auto e) { return left_.starts_with(e); }))
        return false;
      left_.remove_prefix(1);
    }
    return true;
  }
  std::string name() {
    const size_t n = std::min(
        left_.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-"), left_.size());
    const std::string out(left_.substr(0, n));
    left_.remove_prefix(n);
    return out;
  }
  bool take(std::string_view expected) {
    if (!left_.starts_with(expected)) return false;
    left_.remove_prefix(expected.size());
    return true;
  }
  bool tag() {
    if (take("</")) {
      const std::string closed = name();
      if (open_.empty() || open_.back() != closed) return false;
      open_.pop_back();
      return take(">");
    }
    take("<");
    const std::string opened = name();
    std::set<std::string> attributes;
    while (take(" ")) {
      if (!attributes.insert(name()).second || !take("=\"") || !text("\"") || !take("\"")) return false;
    }
    if (take("/>")) return !opened.empty();
    open_.push_back(opened);
    return !opened.empty() && take(">");
  }

  static constexpr std::array<std::string_view, 5> kEntities = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
  std::string_view left_;
  std::vector<std::string> open_;
};

}  // namespace phalanx::testing
