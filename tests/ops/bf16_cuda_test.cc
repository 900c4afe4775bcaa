// bf16 on a GPU: ops compute in f32 on the numbers that they are given, and round once.
#include <array>
#include <cmath>
#include <numeric>

#include "phalanx/ops/bias.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/dropout.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/embedding.h"
#include "phalanx/ops/gelu_linear.h"
#include "phalanx/ops/head_runs.h"
#include "phalanx/ops/latent_kv.h"
#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/rope.h"
#include "phalanx/ops/swiglu.h"
#include "tests/ops/bf16_on_gpu.h"

namespace phalanx::test {
namespace {

const Shape kShapes[] = {{1, 1}, {3, 5}, {7, 64}, {37, 200}, {5, 1003}};

TEST_F(Bf16OnGpu, ElementwiseOpsRoundOnce) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(format("{}", shape));
    const Tensor a = draw(shape, 3);
    const Tensor b = draw(shape);
    expect_rounded(add(a, b), add(wide(a), wide(b)), "add");
    const Tensor sum = copied(a);
    add_into(sum, b);
    EXPECT_TRUE(same_bits(sum, add(a, b)));
    const Tensor scaled = copied(a);
    const Tensor scaled_wide = wide(a);
    scale_into(scaled, 0.3);
    scale_into(scaled_wide, 0.3);
    expect_rounded(scaled, scaled_wide, "scale_into");
    EXPECT_NEAR(number_of(sum_of_squares(a)), number_of(sum_of_squares(wide(a))),
                1e-12 * number_of(sum_of_squares(a)));
    for (const Gelu kind : {Gelu::erf, Gelu::tanh}) {
      expect_rounded(gelu(a, kind), gelu(wide(a), kind), "gelu");
      expect_rounded(gelu_backward(b, a, kind), gelu_backward(wide(b), wide(a), kind), "gelu_backward");
    }
    std::vector<int64_t> rows(static_cast<size_t>(shape[0]));
    std::iota(rows.begin(), rows.end(), 3);
    const Tensor row = indices64({shape[0]}, rows).to(kGpu);
    const DropoutSite site = {RandomStream(7, "mlp"), 11, 0.4};
    expect_rounded(dropout(a, row, site), dropout(wide(a), row, site), "dropout");
  }
}

TEST_F(Bf16OnGpu, RowOpsRoundOnce) {
  for (const auto& [rows, width] : {std::pair(1, 2), {5, 6}, {33, 128}, {7, 130}}) {
    SCOPED_TRACE(format("{} rows of {}", rows, width));
    const Rows gate_up = all_rows(draw({rows, 2 * width}, 2));
    const Rows dy = all_rows(draw({rows, width}));
    expect_rounded(swiglu(gate_up).data, swiglu(wide(gate_up)).data, "swiglu");
    expect_rounded(swiglu_backward(dy, gate_up).data, swiglu_backward(wide(dy), wide(gate_up)).data,
                   "swiglu_backward");
    const Tensor y = copied(dy.data);
    const Tensor y_wide = wide(dy.data);
    const Tensor b = draw({width});
    add_bias_into(y, b);
    add_bias_into(y_wide, wide(b));
    expect_rounded(y, y_wide, "add_bias_into");
    const Tensor before = random_.tensor({width}, DType::f32).to(kGpu);
    const Tensor db = copied(before);
    const Tensor db_wide = copied(before);
    bias_backward_into(db, dy.data);
    bias_backward_into(db_wide, wide(dy.data));
    EXPECT_TRUE(same_bits(db, db_wide));
    std::vector<int32_t> positions;
    for (int r = 0; r < rows; ++r) positions.push_back(static_cast<int32_t>(random_.integer(0, 9000)));
    const Tensor at = indices(positions).to(kGpu);
    const Rotation turns = rotation(10000, 2);
    for (const bool back : {false, true}) {
      const Tensor x = copied(dy.data);
      const Tensor x_wide = wide(dy.data);
      for (const Tensor& t : {x, x_wide}) {
        back ? rope_backward_into(t, at, 2, turns) : rope_into(t, at, 2, turns);
      }
      expect_rounded(x, x_wide, "rope");
    }
  }
}

TEST_F(Bf16OnGpu, NormsKeepTheirMomentsInF32) {
  constexpr double kEps = 1e-5;
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(format("{}", shape));
    const int64_t width = shape[1];
    const Tensor x = draw(shape, 2, 1);
    const Tensor dy = draw(shape);
    const Tensor w = draw({width}, 0.3, 1);
    const Tensor b = draw({width});
    const Tensor before = random_.tensor({width}, DType::f32).to(kGpu);
    const RmsNormed rms = rmsnorm(x, w, kEps);
    const RmsNormed rms_wide = rmsnorm(wide(x), wide(w), kEps);
    expect_near(rms.y_TD, rms_wide.y_TD, 0, "rmsnorm");
    expect_near(rms.inv_rms_T, rms_wide.inv_rms_T, 0, "inv_rms");
    const Tensor dw = copied(before);
    const Tensor dw_wide = copied(before);
    const Tensor dx = rmsnorm_backward(dy, x, w, rms.inv_rms_T, dw);
    const Tensor dx_wide = rmsnorm_backward(wide(dy), wide(x), wide(w), rms.inv_rms_T, dw_wide);
    expect_near(dx, dx_wide, 0.1, "dx of rmsnorm");
    expect_close(values(dw), values(dw_wide), within(32, DType::f32, 16), "dw of rmsnorm");

    const LayerNormed layer = layernorm(x, w, b, kEps);
    const LayerNormed layer_wide = layernorm(wide(x), wide(w), wide(b), kEps);
    expect_near(layer.y_TD, layer_wide.y_TD, 0.1, "layernorm");
    expect_close(values(layer.mean_T), values(layer_wide.mean_T), within(2, DType::f32, 1), "mean");
    const Tensor dw2 = copied(before);
    const Tensor db2 = narrow(before);
    const Tensor dw2_wide = copied(before);
    const Tensor db2_wide = wide(db2);
    const Tensor dx2 = layernorm_backward(dy, x, w, layer, {dw2, db2});
    const Tensor dx2_wide = layernorm_backward(wide(dy), wide(x), wide(w), layer, {dw2_wide, db2_wide});
    expect_near(dx2, dx2_wide, 0.1, "dx of layernorm");
    expect_close(values(dw2), values(dw2_wide), within(32, DType::f32, 16), "dw of layernorm");
    expect_near(db2, db2_wide, 0.1, "db of layernorm, in bf16");
  }
}

TEST_F(Bf16OnGpu, TheLossIsThatOfTheSameLogits) {
  for (const auto& [rows, vocabulary] : {std::pair(3, 5), {17, 128}, {9, 50257}, {5, 128256}}) {
    const Tensor logits = draw({rows, vocabulary}, 4);
    std::vector<int32_t> ids;
    for (int r = 0; r < rows; ++r) ids.push_back(static_cast<int32_t>(random_.integer(-1, vocabulary - 1)));
    const Tensor targets = indices(ids).to(kGpu);
    const Tensor logits_wide = wide(logits);
    const Tensor both = copied(logits);
    const double with_gradient = number_of(cross_entropy_gradient_into(both, targets, 0.7));
    const CrossEntropy loss = cross_entropy(logits, targets);
    EXPECT_EQ(loss.log_sum_exp_T2.dtype(), DType::f32);
    const double want = number_of(cross_entropy(logits_wide, targets).loss_sum);
    EXPECT_NEAR(number_of(loss.loss_sum), want, 1e-5 * std::abs(want));
    cross_entropy_backward_into(logits, targets, loss.log_sum_exp_T2, 0.7);
    cross_entropy_backward_into(logits_wide, targets, loss.log_sum_exp_T2, 0.7);
    expect_rounded(logits, logits_wide, "the gradient of the logits");
    EXPECT_NEAR(with_gradient, want, 1e-5 * std::abs(want));
    expect_near(both, logits_wide, 0, "the gradient with the loss");
  }
}

TEST_F(Bf16OnGpu, TheLossOfPartsOfTheVocabularyIsTheWholes) {
  constexpr int64_t kVocabulary = 64;
  const Tensor logits = draw({37, kVocabulary}, 4);
  std::vector<int32_t> ids;
  for (int r = 0; r < 37; ++r) ids.push_back(static_cast<int32_t>(random_.integer(-1, kVocabulary - 1)));
  const Tensor targets = indices(ids).to(kGpu);
  const CrossEntropy whole = cross_entropy(logits, targets);
  const Tensor sums = cross_entropy_part(logits, targets, {.first = 0, .all = kVocabulary});
  const Tensor parts = Tensor::empty({2, 37, 3}, DType::f64, kGpu);
  copy_into(parts.view({74, 3}).slice(0, 37), sums);
  const Tensor nothing =
      cross_entropy_part(zeros({37, 0}, DType::bf16), targets, {.first = kVocabulary, .all = kVocabulary});
  copy_into(parts.view({74, 3}).slice(37, 74), nothing);
  const CrossEntropy merged = merge_cross_entropy(parts, targets, DType::bf16);
  EXPECT_EQ(number_of(merged.loss_sum), number_of(whole.loss_sum));
  EXPECT_TRUE(same_bits(merged.log_sum_exp_T2, whole.log_sum_exp_T2));
}

TEST_F(Bf16OnGpu, HeadsTravelAsTheyAreAndAreSummedInF32) {
  struct Case {
    int heads;
    int ranks;
    int64_t head_dim;
    int64_t rows;
  };
  for (const Case& c : {Case{8, 4, 64, 33}, Case{2, 4, 24, 7}, Case{1, 4, 3, 5}, Case{4, 2, 8, 0}}) {
    const Tensor x = draw({c.rows, c.heads * c.head_dim});
    const Tensor packed = pack_heads(x, c.heads, c.ranks);
    expect_rounded(packed, pack_heads(wide(x), c.heads, c.ranks), "packed");
    const Tensor y = draw(packed.shape());
    expect_rounded(unpack_heads(y, c.heads, c.ranks), unpack_heads(wide(y), c.heads, c.ranks), "unpacked");
  }
}

TEST_F(Bf16OnGpu, LatentKeysAreCopiedAndTheirSumsRoundOnce) {
  for (const LatentHeads& s :
       {LatentHeads{3, 16, 8, 24}, LatentHeads{16, 128, 64, 128}, LatentHeads{5, 6, 2, 7}}) {
    const Tensor kv = draw({19, s.heads * (s.nope + s.values)});
    const Tensor k_rope = draw({19, s.rope});
    const KeysAndValues out = expand_kv(kv, k_rope, s);
    const KeysAndValues out_wide = expand_kv(wide(kv), wide(k_rope), s);
    expect_rounded(out.k_THd, out_wide.k_THd, "k");
    expect_rounded(out.v_THd, out_wide.v_THd, "v");
    const LatentGradients d = expand_kv_backward(out.k_THd, out.v_THd, s);
    const LatentGradients d_wide = expand_kv_backward(out_wide.k_THd, out_wide.v_THd, s);
    expect_rounded(d.dkv_THd, d_wide.dkv_THd, "dkv");
    expect_rounded(d.dk_rope_Td, d_wide.dk_rope_Td, "dk_rope");
  }
}

TEST_F(Bf16OnGpu, EmbeddingsGradientMayBeInF32) {
  for (const int64_t width : {3, 64, 200}) {
    constexpr int64_t kVocabulary = 30;
    const Tensor table = draw({kVocabulary, width});
    std::vector<int32_t> ids;
    for (int i = 0; i < 200; ++i) ids.push_back(static_cast<int32_t>(random_.integer(0, kVocabulary - 1)));
    const Tensor tokens = indices(ids).to(kGpu);
    const Tensor dy = embedding(table, tokens);
    expect_rounded(dy, embedding(wide(table), tokens), "embedding");
    const Tensor got = zeros({kVocabulary, width});
    const Tensor want = zeros({kVocabulary, width});
    embedding_backward_into(got, dy, tokens);
    embedding_backward_into(want, wide(dy), tokens);
    EXPECT_TRUE(same_bits(got, want));
    const Tensor narrow_sum = zeros({kVocabulary, width}, DType::bf16);
    embedding_backward_into(narrow_sum, dy, tokens);
    expect_rounded(narrow_sum, want, "summed in f32, stored in bf16");
  }
}

// Products of bf16 are exact in f32, so that only their sums are rounded: to f32 on the way, and once to what
// they go to.
TEST_F(Bf16OnGpu, ProductsAreSummedInF32) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{1, 1, 1}, {5, 7, 3}, {64, 128, 256}, {33, 200, 1000}}) {
    SCOPED_TRACE(format("{}·{}·{}", m, n, k));
    const Tensor x = draw({m, k});
    const Tensor w = draw({n, k});
    const Tensor dy = draw({m, n});
    const double terms = std::sqrt(static_cast<double>(k));
    const Tensor y = matmul_nt(x, w);
    EXPECT_EQ(y.dtype(), DType::bf16);
    expect_close(values(y), values(matmul_nt(wide(x), wide(w))), within(0.6, DType::bf16, 0.01 * terms), "y");
    const Tensor dx = matmul(dy, w);
    expect_close(values(dx), values(matmul(wide(dy), wide(w))),
                 within(0.6, DType::bf16, 0.01 * std::sqrt(static_cast<double>(n))), "dx");
    const Tensor before = random_.tensor({n, k}, DType::f32).to(kGpu);
    const Tensor dw = copied(before);
    const Tensor dw_wide = copied(before);
    matmul_tn_into(dw, dy, x);
    matmul_tn_into(dw_wide, wide(dy), wide(x));
    expect_close(values(dw), values(dw_wide), within(64, DType::f32, std::sqrt(static_cast<double>(m))),
                 "dw");
  }
  const Tensor x = draw({2, 3});
  EXPECT_THROW(matmul_nt(x, wide(draw({4, 3}))), BrokenPromise);
  EXPECT_THROW(matmul_nt_into(Tensor::empty({2, 4}, DType::f64, kGpu), x, draw({4, 3})), BrokenPromise);
}

// What a product ends in is computed before it is rounded, where rows are whole 16 bytes; else rounding once
// more on the way is allowed: half a unit of a sum that may be twice the result, or of the size of its terms.
TEST_F(Bf16OnGpu, LinearsEndInF32) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{1, 8, 8}, {5, 7, 3}, {64, 128, 256}, {33, 200, 1000}}) {
    SCOPED_TRACE(format("{}·{}·{}", m, n, k));
    const Tensor x = draw({m, k});
    const Tensor w = draw({n, k});
    const Tensor b = draw({n});
    const Tensor also = draw({m, n});
    const double terms = std::sqrt(static_cast<double>(k));
    const bool whole = n % 8 == 0 && k % 8 == 0;
    const auto close = within(whole ? 0.6 : 1.6, DType::bf16, whole ? 0.01 * terms : 2 + terms);
    const Tensor y = copied(also);
    const Tensor y_wide = wide(also);
    linear_into(y, x, w, b, also);
    linear_into(y_wide, wide(x), wide(w), wide(b), wide(also));
    expect_close(values(y), values(y_wide), close, "y");

    const GeluRows rows = {copied(y), copied(y)};
    const GeluRows rows_wide = {wide(y), wide(y)};
    linear_gelu_into(rows, x, w, b, Gelu::tanh);
    linear_gelu_into(rows_wide, wide(x), wide(w), wide(b), Gelu::tanh);
    expect_close(values(rows.h), values(rows_wide.h), close, "h");
    expect_near(rows.a, gelu(wide(rows.h), Gelu::tanh), 1, "a");

    const Tensor dy = draw({m, k});
    const Tensor w_down = draw({k, n});
    const Tensor dh = copied(y);
    const Tensor dh_wide = wide(y);
    matmul_gelu_backward_into(dh, dy, w_down, also, Gelu::tanh);
    matmul_gelu_backward_into(dh_wide, wide(dy), wide(w_down), wide(also), Gelu::tanh);
    expect_close(values(dh), values(dh_wide), within(1, DType::bf16, std::sqrt(static_cast<double>(k))),
                 "dh");
  }
}

TEST_F(Bf16OnGpu, NormsAddWhatElseThereIs) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(format("{}", shape));
    const Tensor x = draw(shape, 2, 1);
    const Tensor dy = draw(shape);
    const Tensor w = draw({shape[1]}, 0.3, 1);
    const Tensor also = draw(shape);
    const Tensor dw = zeros({shape[1]});
    const Tensor inv_rms = rmsnorm(x, w, 1e-5).inv_rms_T;
    const Tensor dx = rmsnorm_backward(dy, x, w, inv_rms, dw, also);
    expect_near(dx, rmsnorm_backward(wide(dy), wide(x), wide(w), inv_rms, dw, wide(also)), 0.1, "rmsnorm");
    const LayerNormed kept = layernorm(x, w, {}, 1e-5);
    const Tensor dx2 = layernorm_backward(dy, x, w, kept, {dw, {}, also});
    const Tensor want = layernorm_backward(wide(dy), wide(x), wide(w), kept, {dw, {}, wide(also)});
    expect_near(dx2, want, 0.1, "layernorm");
  }
}

// Whichever algorithm is taken; and trying them leaves what is added to as it was.
TEST_F(Bf16OnGpu, TunedProductsAreTheSameButForRounding) {
  constexpr int64_t kRows = 264;
  const Tensor x = draw({kRows, 320});
  const Tensor w = draw({136, 320});
  const Tensor b = draw({136});
  const Tensor before = random_.tensor({136, 320}, DType::f32).to(kGpu);
  const auto results = [&](bool tuned) {
    tune_products(tuned);
    const Tensor y = Tensor::empty({kRows, 136}, DType::bf16, kGpu);
    linear_into(y, x, w, b);
    const Tensor dw = copied(before);
    for (int time = 0; time < 2; ++time) matmul_tn_into(dw, y, x);
    tune_products(false);
    return std::array{values(y), values(dw)};
  };
  const auto [y, dw] = results(false);
  const auto [y_tuned, dw_tuned] = results(true);
  expect_close(y_tuned, y, within(1, DType::bf16, 0.2), "y");
  expect_close(dw_tuned, dw, within(2, DType::bf16, 20), "dw");
}

}  // namespace
}  // namespace phalanx::test
