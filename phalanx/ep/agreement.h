// What ranks tell each other before rows move, so that a mistake of one is the same error on all.
#pragma once

#include <type_traits>

#include "phalanx/ep/tokens.h"

namespace phalanx::ep {

/// What a rank says of its dispatch: numbers alone, which travel with the counts of its rows.
struct Statement {
  enum class Fault : int64_t { none, argument, expert, repeated, weight };
  Fault fault = Fault::none;
  int64_t token = 0;  // whose row is at fault
  int64_t value = 0;  // the expert's number
  int64_t tokens = 0;
  int64_t row_bytes = 0;
  int64_t dtypes = 0;  // of rows, weights and scales; whether there are any
  int64_t scale_bytes = 0;
  int64_t top_k = 0;
  int64_t experts = 0;
  int64_t form = 0;  // what of the options must be equal everywhere
  int64_t worst_rows = 0;
};
static_assert(std::is_trivially_copyable_v<Statement>);
inline constexpr int64_t kStatementWords = sizeof(Statement) / sizeof(int64_t);

/// Never throws. `checked`: also finds experts that a token names twice, and weights that are NaN. `*why`
/// says what is wrong with an argument, for this rank's own message; not empty: something is already.
Statement examine(const Tokens& tokens, const DispatchOptions& options, int64_t experts, bool checked,
                  std::string* why);

/// Of all ranks, in their order. Error, the same on every rank: one has a fault (`why` is added on that
/// rank), one's rows, top-k or experts are not rank 0's, or there are more tokens than a rank's worst_rows.
void agree(std::span<const Statement> all, int rank, const std::string& why);

}  // namespace phalanx::ep
