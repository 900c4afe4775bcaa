// attention_over_pages in bf16, where the heads are such as models have.
#pragma once

#include "phalanx/ops/decode_attention.h"

namespace phalanx::cuda {

/// Whether decode_attention_into is for these: bf16, heads of 64 or 128 columns, at most 8 of them for a KV
/// head, pages of whole runs of 32 rows; on sm_90.
bool takes_decode_attention(const Tensor& q_THd, const KvPages& pages, const AttentionConfig& config);

/// As attention_over_pages. Cut over the context by the tables' size, not by positions, which the host does
/// not know; the same bits each time. Where several clusters share a head takes memory for their sums in f32.
void decode_attention_into(const Tensor& y_THd, const Tensor& q_THd, const KvPlaces& places,
                           const KvPages& pages, const AttentionConfig& config);

/// As append_and_attend. False, and nothing is done, unless it takes them and whole heads turn, or none.
bool append_and_attend_into(const Tensor& y_THd, const KvPages& pages, const KvPlaces& places,
                            const AttentionRows& rows, const AttentionConfig& config);

}  // namespace phalanx::cuda
