// What a mixture of experts does beside its products, on one GPU: the router, rows into expert order, and
// back. Bytes are those that must move: rows of bf16 once for each reader and writer, i64 indices, f32
// scores.
#include <array>

#include "bench/cuda_bench.h"
#include "phalanx/ops/permute.h"
#include "phalanx/ops/route.h"
#include "phalanx/ops/swiglu.h"

namespace phalanx::bench {
namespace {

struct Layer {
  int64_t tokens, width, experts, top_k;
  RoutingConfig config;
};

// Moves of so many bytes.
void moves(Table& table, const char* op, const std::string& shape, int64_t bytes,
           const std::function<void()>& f) {
  table.moves(op, shape, bytes, f, DType::u8);
}

void routers(Table& table, const Layer& l, const std::string& shape) {
  const Tensor x = random({l.tokens, l.width}, DType::bf16);
  const Tensor w = random({l.experts, l.width}, DType::bf16);
  const Tensor logits = random({l.tokens, l.experts}, DType::f32);
  const Tensor bias = random({l.experts}, DType::f32);
  const Routing routing = route(logits, l.config, bias);
  const Tensor dweights = random({l.tokens, l.top_k}, DType::f32);
  const Tensor dlogits = random({l.tokens, l.experts}, DType::f32);
  const std::array<int64_t, 3> ends = {0, l.tokens / 2, l.tokens};
  const Tensor offsets = Tensor::of(Shape{3}, std::span<const int64_t>(ends));
  const Tensor counts = balance_counts(routing, offsets);
  const Tensor lse = log_sum_exp(logits);
  const int64_t scores = l.tokens * l.experts * 4;
  const int64_t chosen = l.tokens * l.top_k;
  const double operations = 2.0 * static_cast<double>(l.tokens * l.experts * l.width);
  table.multiplies("router_logits", shape, operations, [&] { (void)router_logits(x, w); });
  moves(table, "route", shape, 2 * scores + chosen * 12, [&] { (void)route(logits, l.config, bias); });
  moves(table, "route_backward", shape, 2 * scores + chosen * 16,
        [&] { (void)route_backward(dweights, Tensor(), routing, l.config); });
  moves(table, "balance_counts", shape, chosen * 8, [&] { (void)balance_counts(routing, offsets); });
  moves(table, "balance_loss", shape, scores, [&] { (void)balance_loss(routing, offsets, counts); });
  moves(table, "balance_loss_backward", shape, 2 * scores,
        [&] { (void)balance_loss_backward(routing, offsets, counts, 1e-3); });
  moves(table, "log_sum_exp", shape, scores, [&] { (void)log_sum_exp(logits); });
  moves(table, "z_loss", shape, l.tokens * 4, [&] { (void)z_loss(lse); });
  moves(table, "z_loss_backward", shape, 3 * scores,
        [&] { z_loss_backward_into(dlogits, logits, lse, 1e-3); });
  const Tensor numbers = Tensor::empty({l.tokens}, DType::i64);
  for (int64_t t = 0; t < l.tokens; ++t) numbers.data<int64_t>()[t] = l.tokens - t;
  const Tensor numbers_here = numbers.to(kGpu);
  moves(table, "within_capacity", shape, chosen * 16 + l.tokens * 8, [&] {
    (void)within_capacity(routing.topk_idx_TK, numbers_here, offsets, {.experts = l.experts, .factor = 1.25});
  });
}

void orders(Table& table, const Layer& l, const std::string& shape) {
  const Rows x = all_rows(random({l.tokens, l.width}, DType::bf16));
  const Routing routing = route(random({l.tokens, l.experts}, DType::f32), {.top_k = l.config.top_k});
  const Rows chosen = all_rows(routing.topk_idx_TK);
  const auto experts = static_cast<int>(l.experts);
  const ExpertOrder order = order_by_expert(chosen, experts);
  const Rows rows = permute(x, order);
  const int64_t slots = l.tokens * l.top_k;
  const int64_t once = l.tokens * l.width * 2;
  const int64_t each = once * l.top_k;
  moves(table, "order_by_expert", shape, slots * 24, [&] { (void)order_by_expert(chosen, experts); });
  moves(table, "permute", shape, once + each, [&] { (void)permute(x, order); });
  moves(table, "unpermute, weighted", shape, once + each,
        [&] { (void)unpermute(rows, order, routing.weights_TK, x); });
  moves(table, "unpermute", shape, once + each, [&] { (void)unpermute(rows, order, Tensor(), x); });
  // Of experts whose gates and ups are as wide as a row, half of each.
  const Rows da = {rows.data.slice(0, slots / 2).view({slots, l.width / 2}), order.live};
  moves(table, "weighted_swiglu_backward", shape, 3 * each,
        [&] { (void)weighted_swiglu_backward(da, rows, order, routing.weights_TK); });
}

void run(Report& report) {
  Table table(report);
  copies(table);
  const RoutingConfig grouped = {
      .scores = Scores::sigmoid, .top_k = 8, .scaling = 2.5, .groups = 8, .top_groups = 4};
  for (const Layer& l : {Layer{32768, 7168, 256, 8, grouped}, Layer{8192, 2048, 64, 6, {.top_k = 6}},
                         Layer{16384, 1024, 16, 2, {.top_k = 2}}}) {
    const std::string shape = format("[{}, {}], top {} of {}", l.tokens, l.width, l.top_k, l.experts);
    orders(table, l, shape);
    routers(table, l, shape);
  }
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
  return phalanx::bench::main_on_gpu("cuda_moe", {argv, static_cast<size_t>(argc)}, phalanx::bench::run);
}
