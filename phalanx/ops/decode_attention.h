// Decoding with keys and values in pages, where everything that changes from step to step (positions, which
// pages) lies in the tensors' memory: on a GPU the host neither reads nor writes it.
// W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023.
#pragma once

#include "phalanx/ops/attention.h"

namespace phalanx {

/// The rows of one layer, of B sequences: keys [N · page_rows, G·d] and values [N · page_rows, G·e], of which
/// page p has rows p · page_rows and on. The position i of a sequence is row i % page_rows of its page number
/// i / page_rows.
struct KvPages {
  Tensor k_SGd;
  Tensor v_SGd;
  Tensor table_BP;  // i32: each sequence's pages in order; −1: none
  int64_t page_rows = 0;

  int64_t count() const { return k_SGd.rows() / page_rows; }
};

/// Where the T rows of a step stand: row i at positions[i] of sequence sequences[i] (i32 [T] each).
struct KvPlaces {
  Tensor sequences;
  Tensor positions;
};

/// Writes k [T, G·d] and v [T, G·e] to their places; those have pages.
void append_to_pages(const KvPages& pages, const KvPlaces& places, const Tensor& k_TGd, const Tensor& v_TGd);

/// Row i of q [T, H·d] attends to the positions up to its own in its sequence, all of which were written:
/// y [T, H·e], as attention_over_segments (f32 or f64; on a GPU also bf16).
Tensor attention_over_pages(const Tensor& q_THd, const KvPlaces& places, const KvPages& pages,
                            const AttentionConfig& config);

}  // namespace phalanx
