// Things that all ranks of a group do or leave undone together.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "phalanx/base/function_ref.h"
#include "phalanx/comm/group.h"

namespace phalanx {

/// Runs `body`, which must not communicate, on every rank. Then every rank returns, or every rank throws the
/// same Error: what the first of those that failed (by rank) said. A rank whose own failure is not an Error
/// throws that instead. Collective.
void all_or_none(Group& group, FunctionRef<void()> body);

/// On rank 0 every rank's text, in rank order; elsewhere nothing. Collective.
std::vector<std::string> gather_texts(Group& group, std::string_view text);

/// The root's text, on every rank. Collective.
std::string broadcast_text(Group& group, std::string_view text, int root);

}  // namespace phalanx
