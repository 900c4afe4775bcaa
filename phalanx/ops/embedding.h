// Token embedding.
#pragma once

#include "phalanx/ops/vocabulary_part.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Rows of table [V, D] picked by tokens (i32 [T]) → [T, D]; zeros for tokens whose row is in another part.
Tensor embedding(const Tensor& table_VD, const Tensor& tokens, VocabularyPart part = {});
/// dtable [V, D] += dy's rows at their tokens, in token order (deterministic).
void embedding_backward_into(Tensor dtable_VD, const Tensor& dy_TD, const Tensor& tokens,
                             VocabularyPart part = {});

}  // namespace phalanx
