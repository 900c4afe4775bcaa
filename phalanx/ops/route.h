// Choosing experts: scores, the best K, their weights, the balance loss and the z-loss.
//
// On a GPU too, with up to 1024 experts; what cuts rows into sequences (offsets) is on the host even then.
#pragma once

#include <cstdint>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// x · wᵀ, [T, E], of x [T, D] and w [E, D]. A row's bits do not depend on the rows beside it, as they may in
/// a matrix product of a library: wherever a token is routed, it finds the same experts. Of bf16 (on a GPU)
/// the logits are f32, in which scores and weights then are too.
Tensor router_logits(const Tensor& x_TD, const Tensor& w_ED);

/// How logits become scores. softmax: over all experts; sigmoid: each by itself (DeepSeek-V3).
enum class Scores : uint8_t { softmax, sigmoid };

struct RoutingConfig {
  Scores scores = Scores::softmax;
  int top_k = 1;
  bool normalise = true;  ///< divide the chosen scores by their sum (+ 1e-20)
  double scaling = 1;     ///< times this, after that
  /// Experts lie in so many equal groups, neighbours in one, and a token chooses from the best `top_groups`
  /// alone: those whose two best experts' scores sum to most, ties to the lower group (DeepSeek-V3, section
  /// 2.1.2).
  int groups = 1;
  int top_groups = 1;
};

/// topk_idx i64 [T, K], best first, ties to the lower expert; weights [T, K]; scores [T, E] are kept for
/// backward.
struct Routing {
  Tensor topk_idx_TK;
  Tensor weights_TK;
  Tensor scores_TE;
};
/// logits [T, E]. bias [E], or empty: added to the scores for the choice of groups and experts alone, not for
/// the weights (L. Wang et al., Auxiliary-Loss-Free Load Balancing, 2024).
Routing route(const Tensor& logits_TE, const RoutingConfig& config, const Tensor& bias_E = {});
/// The gradient of the logits from that of the weights, plus that of the scores themselves (dscores [T, E],
/// the balance loss's; may be empty).
Tensor route_backward(const Tensor& dweights_TK, const Tensor& dscores_TE, const Routing& routing,
                      const RoutingConfig& config);

/// Of E experts: what each may take of B sequences, and what it took of their first tokens.
struct ExpertRoom {
  int64_t experts = 0;
  double factor = 0;          ///< an expert takes ⌈factor · n · K / E⌉ of a sequence of n tokens
  Tensor whole_offsets = {};  ///< i64 [B+1], of the whole sequences; none: those that are given are whole
  Tensor taken_BE = {};       ///< i64, where the choices are; updated; none: nothing so far
};
/// What an expert takes of a sequence of so many tokens.
int64_t room_in_sequence(int64_t tokens, int64_t top_k, const ExpertRoom& room);
/// The choices that experts have room for; the others become −1. In each sequence an expert takes the first
/// that choose it, by position (GShard, Lepikhin et al. 2020, section 2.2, with a sequence for a group).
/// topk_idx [T, K] of whole sequences, or of their next tokens, whose rows stand in any order; numbers i64
/// [T], all different, tell it: in ascending order those from offsets[b] on are sequence b's.
Tensor within_capacity(const Tensor& topk_idx_TK, const Tensor& numbers_T, const Tensor& sequence_offsets,
                       const ExpertRoom& room);

/// The sequence-wise balance loss of DeepSeek-V3 (section 2.1.2): for each sequence of n tokens (offsets i64
/// [B+1]) n · Σ_e f_e · P_e, with f_e = E/(K·n) · times e was chosen and P_e the mean of scores normalised
/// over experts; so that divided by all tokens it is a mean over tokens.
///
/// How often each expert was chosen by the rows of each sequence, f64 [B, E]. Where ranks share a sequence's
/// rows, they sum it.
Tensor balance_counts(const Routing& routing, const Tensor& sequence_offsets);
/// What these rows add to the loss, summed over sequences, f64 [1]; `counts` of all their rows.
Tensor balance_loss(const Routing& routing, const Tensor& sequence_offsets, const Tensor& counts_BE);
/// The gradient of scale · balance_loss by the scores, [T, E].
Tensor balance_loss_backward(const Routing& routing, const Tensor& sequence_offsets, const Tensor& counts_BE,
                             double scale);

/// log Σ_e exp(logit_e) of each row, [T].
Tensor log_sum_exp(const Tensor& logits_TE);
/// The router z-loss of ST-MoE (Zoph et al. 2022, equation 5) times the number of rows: Σ of the squares of
/// log_sum_exp, f64 [1].
Tensor z_loss(const Tensor& log_sum_exp_T);
/// Adds the gradient of scale · z_loss by the logits.
void z_loss_backward_into(const Tensor& dlogits_TE, const Tensor& logits_TE, const Tensor& log_sum_exp_T,
                          double scale);

}  // namespace phalanx
