// FP8 on one GPU: what quantises, against a copy's speed, and products beside the same in bf16 by cuBLASLt.
// Bytes are those that must move: a tensor read once, what is made of it written once.
// Of experts, products stand beside grouped ones of bf16.
#include <numeric>

#include "bench/cuda_bench.h"
#include "phalanx/ops/fp8_grouped.h"

namespace phalanx::bench {
namespace {

void quantisers(Table& table, int64_t rows, int64_t width) {
  const std::string shape = format("[{}, {}]", rows, width);
  const Tensor x = random({rows, width}, DType::bf16);
  const int64_t n = rows * width;
  const auto moves = [&](const char* op, int64_t bytes, const std::function<void()>& f) {
    table.moves(op, shape, bytes, f, DType::u8);
  };
  const int64_t scales = n / kScaleGroup * int64_t{sizeof(float)};
  moves("rows to send, f32 scales", 3 * n + scales, [&] { (void)quantize(x, ScaleFormat::f32); });
  moves("rows to send, ue8m0", 3 * n + scales / 4, [&] { (void)quantize(x, ScaleFormat::ue8m0); });
  moves("rows", 3 * n + scales, [&] { (void)fp8_rows(x, ScaleFormat::ue8m0); });
  moves("columns", 3 * n + scales, [&] { (void)fp8_columns(x, ScaleFormat::ue8m0); });
  moves("rows and columns", 4 * n + 2 * scales, [&] { (void)fp8_rows_and_columns(x, ScaleFormat::ue8m0); });
  const Fp8Lines kept = fp8_rows(x, ScaleFormat::ue8m0);
  moves("columns of rows", 2 * n + 2 * scales, [&] { (void)fp8_columns(kept); });
  moves("blocks", 3 * n, [&] { (void)fp8_blocks(x, ScaleFormat::f32); });
  const Fp8Blocks w = fp8_blocks(x, ScaleFormat::f32);
  moves("blocks, then transposed", 2 * n, [&] { (void)fp8_transposed(w); });
  moves("transposed blocks", 3 * n, [&] { (void)fp8_blocks_transposed(x, ScaleFormat::f32); });
}

void products(Table& table, int64_t m, int64_t n, int64_t k) {
  const std::string shape = format("{}×{}×{}", m, n, k);
  const double operations = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const Tensor x = random({m, k}, DType::bf16);
  const Tensor w = random({n, k}, DType::bf16);
  const Tensor y = Tensor::zeros({m, n}, DType::bf16, kGpu);
  const Tensor dw = Tensor::zeros({m, n}, DType::f32, kGpu);
  const auto multiplies = [&](const char* op, const std::function<void()>& f) {
    table.multiplies(op, shape, operations, f);
  };
  const Fp8Lines a = fp8_rows(x, ScaleFormat::f32);
  const Fp8Blocks b = fp8_blocks(w, ScaleFormat::f32);
  const Fp8Lines rows = fp8_rows(w, ScaleFormat::f32);
  multiplies("bf16, cuBLASLt", [&] { matmul_nt_into(y, x, w, Into::replace); });
  multiplies("FP8, blocks, into bf16", [&] { fp8_matmul_nt_into(y, a, b, Into::replace); });
  multiplies("FP8, blocks, into f32", [&] { fp8_matmul_nt_into(dw, a, b, Into::replace); });
  multiplies("bf16, cuBLASLt, added to f32", [&] { matmul_nt_into(dw, x, w, Into::add); });
  multiplies("FP8, lines, added to f32", [&] { fp8_matmul_nt_into(dw, a, rows, Into::add); });
  multiplies("FP8, lines, into bf16", [&] { fp8_matmul_nt_into(y, a, rows, Into::replace); });
}

// One matrix of a layer of experts.
struct Experts {
  int64_t rows;
  int64_t experts;
  int64_t n;  // features out
  int64_t k;  // features in
};

// An expert has half to one and a half times its share of the rows, at random.
Tensor uneven_offsets(const Experts& layer) {
  std::mt19937 engine(7);
  std::vector<double> shares(static_cast<size_t>(layer.experts));
  for (double& share : shares) share = 0.5 + static_cast<double>(engine()) / 0x1p32;
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int64_t> offsets = {0};
  double before = 0;
  for (const double share : shares) {
    before += share;
    offsets.push_back(std::llround(before / sum * static_cast<double>(layer.rows)));
  }
  return Tensor::of({layer.experts + 1}, std::span<const int64_t>(offsets)).to(kGpu);
}

void grouped_quantisers(Table& table, const Experts& layer) {
  const Tensor offsets = uneven_offsets(layer);
  const Rows x = all_rows(random({layer.rows, layer.k}, DType::bf16));
  const int64_t n = x.data.numel();
  const int64_t scales = n / kScaleGroup * int64_t{sizeof(float)};
  const std::string shape = format("[{}, {}], {} experts", layer.rows, layer.k, layer.experts);
  const auto moves = [&](const char* op, int64_t bytes, const std::function<void()>& f) {
    table.moves(op, shape, bytes, f, DType::u8);
  };
  moves("live rows", 3 * n + scales, [&] { (void)fp8_rows(x, ScaleFormat::ue8m0); });
  moves("columns by expert", 3 * n + scales,
        [&] { (void)fp8_grouped_columns(x, offsets, ScaleFormat::f32); });
  moves("rows and columns by expert", 4 * n + 2 * scales,
        [&] { (void)fp8_grouped_rows_and_columns(x, offsets, ScaleFormat::f32); });
  const Fp8Rows kept = fp8_rows(x, ScaleFormat::ue8m0);
  moves("columns by expert, of rows", 2 * n + 2 * scales, [&] { (void)fp8_grouped_columns(kept, offsets); });
  const Tensor w = random({layer.experts * layer.n, layer.k}, DType::bf16);
  const Tensor w_ENK = w.view({layer.experts, layer.n, layer.k});
  moves("experts' blocks", 3 * w.numel(), [&] { (void)fp8_blocks(w_ENK, ScaleFormat::f32); });
  moves("experts' transposed blocks", 3 * w.numel(),
        [&] { (void)fp8_blocks_transposed(w_ENK, ScaleFormat::f32); });
}

void grouped_products(Table& table, const Experts& layer) {
  const std::string shape = format("{} rows, {} × {}×{}", layer.rows, layer.experts, layer.n, layer.k);
  const double operations = 2.0 * static_cast<double>(layer.rows * layer.n * layer.k);
  const auto multiplies = [&](const char* op, const std::function<void()>& f) {
    table.multiplies(op, shape, operations, f);
  };
  const Tensor offsets = uneven_offsets(layer);
  const Rows x = all_rows(random({layer.rows, layer.k}, DType::bf16));
  const Rows dy = all_rows(random({layer.rows, layer.n}, DType::bf16));
  const Tensor w =
      random({layer.experts * layer.n, layer.k}, DType::bf16).view({layer.experts, layer.n, layer.k});
  const Fp8Rows x_rows = fp8_rows(x, ScaleFormat::ue8m0);
  const Fp8GroupedRowsAndColumns dys = fp8_grouped_rows_and_columns(dy, offsets, ScaleFormat::f32);
  const Fp8Blocks blocks = fp8_blocks(w, ScaleFormat::f32);
  const Fp8Blocks turned = fp8_blocks_transposed(w, ScaleFormat::f32);
  const Fp8Lines x_columns = fp8_grouped_columns(x_rows, offsets);
  multiplies("y = x·wᵀ, bf16", [&] { (void)grouped_matmul_nt(x, w, offsets); });
  multiplies("y = x·wᵀ, FP8", [&] { (void)fp8_grouped_matmul_nt(x_rows, blocks, offsets, DType::bf16); });
  multiplies("dx = dy·w, bf16", [&] { (void)grouped_matmul(dy, w, offsets); });
  multiplies("dx = dy·w, FP8", [&] { (void)fp8_grouped_matmul_nt(dys.rows, turned, offsets, DType::bf16); });
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const Tensor dw = Tensor::zeros(w.shape(), dtype, kGpu);
    for (const Into into : {Into::replace, Into::add}) {
      const std::string what = format("dw {} dyᵀ·x in {}", into == Into::add ? "+=" : "=", dtype_name(dtype));
      multiplies((what + ", bf16").c_str(), [&] { grouped_matmul_tn_into(dw, dy, x, offsets, into); });
      multiplies((what + ", FP8").c_str(),
                 [&] { fp8_grouped_matmul_tn_into(dw, dys.columns, x_columns, offsets, into); });
    }
  }
}

void run(Report& report) {
  Table table(report);
  copies(table);
  quantisers(table, 16384, 7168);
  quantisers(table, 16384, 4096);
  products(table, 8192, 8192, 8192);
  products(table, 16384, 3072, 8192);
  products(table, 4096, 7168, 2048);
  products(table, 512, 7168, 16384);
  grouped_quantisers(table, {49152, 64, 2048, 2048});
  for (const Experts& layer : {Experts{49152, 64, 2048, 2048}, Experts{49152, 64, 2048, 1024},
                               Experts{32768, 16, 2816, 1024}, Experts{32768, 16, 1024, 1408}})
    grouped_products(table, layer);
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
  return phalanx::bench::main_on_gpu("FP8", {argv, static_cast<size_t>(argc)}, phalanx::bench::run);
}
