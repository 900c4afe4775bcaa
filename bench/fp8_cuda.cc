// FP8 on one GPU: what quantises, against a copy's speed, and products beside the same in bf16 by cuBLASLt.
// Bytes are those that must move: a tensor read once, what is made of it written once.
#include "bench/cuda_bench.h"
#include "phalanx/ops/fp8_matmul.h"

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

void run(Report& report) {
  Table table(report);
  copies(table);
  quantisers(table, 16384, 7168);
  quantisers(table, 16384, 4096);
  products(table, 8192, 8192, 8192);
  products(table, 16384, 3072, 8192);
  products(table, 4096, 7168, 2048);
  products(table, 512, 7168, 16384);
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
  return phalanx::bench::main_on_gpu("FP8", {argv, static_cast<size_t>(argc)}, phalanx::bench::run);
}
