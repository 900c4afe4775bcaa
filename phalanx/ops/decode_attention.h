// Decoding with keys and values in pages, where everything that changes from step to step (positions, which
// pages) lies in the tensors' memory: on a GPU the host neither reads nor writes it.
// W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023.
#pragma once

#include "phalanx/ops/attention.h"
#include "phalanx/ops/rope.h"

namespace phalanx {

/// What a layer's attention computes of a batch's rows: [T, H·d], [T, G·d] and [T, G·e].
struct AttentionRows {
  Tensor q_THd;
  Tensor k_TGd;
  Tensor v_TGd;
  const Rotation* rotation = nullptr;  ///< by which q and k are still to be turned; null: they need not
};
/// rope_into of q and k, if they need it.
inline void turn(const AttentionRows& rows, const Tensor& positions, int64_t head_dim) {
  if (!rows.rotation) return;
  rope_into(rows.q_THd, positions, head_dim, *rows.rotation);
  rope_into(rows.k_TGd, positions, head_dim, *rows.rotation);
}

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

/// The same of rows that may still have to be turned, with q in place; what is left in k is not said. On a
/// GPU one launch.
void turn_and_append(const KvPages& pages, const KvPlaces& places, const AttentionRows& rows,
                     int64_t head_dim);

/// Row i of q [T, H·d] attends to the positions up to its own in its sequence, all of which were written:
/// y [T, H·e], as attention_over_segments (f32 or f64; on a GPU also bf16).
Tensor attention_over_pages(const Tensor& q_THd, const KvPlaces& places, const KvPages& pages,
                            const AttentionConfig& config);

/// turn_and_append, then attention_over_pages, of rows that belong to different sequences; what is left in q
/// and k is not said. On a GPU in bf16 one launch.
Tensor append_and_attend(const KvPages& pages, const KvPlaces& places, const AttentionRows& rows,
                         const AttentionConfig& config);

}  // namespace phalanx
