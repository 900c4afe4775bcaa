// The word that the user probably meant.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace phalanx {

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b` (optimal string
/// alignment).
size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate with the smallest edit distance to `word`, the first of equals; "" when there are none.
std::string nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace phalanx
