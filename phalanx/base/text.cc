#include "phalanx/base/text.h"

#include <fmt/args.h>
#include <fmt/format.h>

namespace phalanx {
namespace {

std::string list(std::span<const int64_t> v) {
  return fmt::format("[{}]", fmt::join(v.begin(), v.end(), ", "));
}

}  // namespace

std::string format_values(std::string_view pattern, std::initializer_list<Arg> values) {
  fmt::dynamic_format_arg_store<fmt::format_context> store;
  for (const Arg& arg : values) {
    std::visit(
        [&store](const auto& v) {
          if constexpr (requires {
                          v.data();
                          v.front() + int64_t{0};
                        } &&
                        !std::is_same_v<std::decay_t<decltype(v)>, std::string_view>) {
            store.push_back(list(v));
          } else {
            store.push_back(v);
          }
        },
        arg.value());
  }
  try {
    return fmt::vformat(pattern, store);
  } catch (const fmt::format_error&) {
    std::string text(pattern);
    for (const Arg& arg : values) {
      std::visit(
          [&text](const auto& v) {
            if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::span<const int64_t>>) {
              text += fmt::format(" | {}", list(v));
            } else {
              text += fmt::format(" | {}", v);
            }
          },
          arg.value());
    }
    return text;
  }
}

}  // namespace phalanx
