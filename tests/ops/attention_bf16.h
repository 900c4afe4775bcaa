// Attention in bf16 on a GPU against the same GPU's f32, on the same numbers.
#pragma once

#include <utility>

#include "phalanx/ops/attention.h"
#include "tests/ops/attention_magnitudes.h"
#include "tests/ops/bf16_on_gpu.h"

namespace phalanx::test {

class AttentionBf16 : public Bf16OnGpu {
 protected:
  // A problem whose elements bf16 holds exactly, there.
  struct Inputs {
    AttentionProblem x;
    Tensor q, k, v, dy, offsets;

    Inputs(const AttentionCase& c, Random& random) : Inputs(AttentionProblem(c, random)) {}
    explicit Inputs(AttentionProblem problem) : x(std::move(problem)) {
      const auto take = [&](Values& all, int64_t stride) {
        const Tensor t = narrow(tensor({x.rows(), stride}, DType::f32, all));
        all = values(wide(t));
        return t;
      };
      q = take(x.q, x.query_stride());
      k = take(x.k, x.key_stride());
      v = take(x.v, x.value_stride());
      dy = take(x.dy, x.output_stride());
      offsets = indices64({std::ssize(x.offsets)}, x.offsets);
    }
  };
  struct Outputs {
    Attended forward;
    AttentionGradients gradients;

    std::vector<Tensor> all() const {
      return {forward.y_THd, forward.log_sum_exp_TH, gradients.dq_THd, gradients.dk_TGd, gradients.dv_TGd};
    }
  };

  static Outputs run(const Inputs& in, const AttentionConfig& config) {
    const Attended out = attention(in.q, in.k, in.v, in.offsets, config);
    return {out, attention_backward(in.dy, in.q, in.k, in.v, out, in.offsets, config)};
  }
  static Outputs run(const Inputs& in) { return run(in, in.x.config); }

  // In f32; backward from the y and log-sum-exp that bf16 gave.
  static Outputs run_wide(const Inputs& in, const Attended& forward) {
    const Tensor q = wide(in.q);
    const Tensor k = wide(in.k);
    const Tensor v = wide(in.v);
    const Attended kept = {wide(narrow_if_wide(forward.y_THd)), forward.log_sum_exp_TH};
    return {attention(q, k, v, in.offsets, in.x.config),
            attention_backward(wide(in.dy), q, k, v, kept, in.offsets, in.x.config)};
  }
  static Tensor narrow_if_wide(const Tensor& t) { return t.dtype() == DType::bf16 ? t : narrow(t); }

  // Factors and the result are rounded; a quarter of a rounding is left for what is done in f32. `more`:
  // those beyond one call's.
  static void expect_right(const Inputs& in, const Outputs& got, double more = 0) {
    SCOPED_TRACE(in.x.trace());
    const Outputs want = run_wide(in, got.forward);
    AttentionResults kept;
    kept.y = values(narrow_if_wide(got.forward.y_THd));
    kept.log_sum_exp = values(got.forward.log_sum_exp_TH);
    expect_close(kept.log_sum_exp, values(want.forward.log_sum_exp_TH), within(64, DType::f32, 4),
                 "log-sum-exp");
    const Magnitudes sums = magnitudes(in.x, kept, kOfFactors);
    const double error = (2.25 + more) * 0x1p-8;
    const double grouped = in.x.config.heads > in.x.config.kv_heads ? 0x1p-8 : 0;
    expect_within(values(got.forward.y_THd), values(want.forward.y_THd), sums.y, error, "y");
    expect_within(values(got.gradients.dq_THd), values(want.gradients.dq_THd), sums.dq, error, "dq");
    expect_within(values(got.gradients.dk_TGd), values(want.gradients.dk_TGd), sums.dk, error + grouped,
                  "dk");
    expect_within(values(got.gradients.dv_TGd), values(want.gradients.dv_TGd), sums.dv, error + grouped,
                  "dv");
  }
};

// Equal lengths that cuDNN's tiles divide, or not, ragged ones, sequences of one row and of none, grouped
// heads, head sizes of models, latent attention's, and odd ones.
inline std::vector<AttentionCase> bf16_attention_cases() {
  return {{heads(2, 2, 64), {128, 128, 128}},
          {heads(4, 1, 64), {384, 384}},
          {heads(8, 2, 128), {128, 128}},
          {heads(2, 2, 192, 128), {256, 256}},
          {heads(2, 2, 64), {77, 77}},
          {heads(4, 1, 128), {333}},
          {heads(2, 2, 192, 128), {201, 5, 64}},
          {heads(4, 2, 136, 72), {154, 30}},
          {heads(3, 3, 128), {1}},
          {heads(2, 1, 64), {1, 1, 1, 1}},
          {heads(2, 2, 64), {}},
          {heads(2, 2, 64), {0, 0}},
          {heads(3, 1, 72), {100, 31}},
          {heads(2, 1, 8, 24), {256, 2}},
          {heads(2, 1, 96, 8), {140, 20}},
          {heads(4, 1, 64), {1, 300, 17, 0, 129, 1}}};
}

}  // namespace phalanx::test
