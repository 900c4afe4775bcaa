// Models of a few dozen numbers, for tests of a whole step: 11 tokens, sequences of 7, three heads.
#pragma once

#include "phalanx/model/config.h"

namespace phalanx {

ModelConfig gpt();
ModelConfig llama();  ///< one KV head
ModelConfig mla();
ModelConfig moe();
ModelConfig sigmoid_moe_with_dropout();

/// With heads and widths that tp = 2 and 4 divide.
ModelConfig divisible(ModelConfig c);
/// The same with sequences of six, so that ranks of cp = 2 or 4 meet within one.
ModelConfig six_tokens(ModelConfig c);
ModelConfig with_vocabulary(ModelConfig c, int64_t vocabulary);
ModelConfig with_one_kv_head(ModelConfig c);
ModelConfig with_dropout(ModelConfig c);
/// Multi-token prediction of two depths.
ModelConfig with_mtp(ModelConfig c);
ModelConfig with_every_routing_loss(ModelConfig c);  ///< and experts with room for fewer tokens than may come

}  // namespace phalanx
