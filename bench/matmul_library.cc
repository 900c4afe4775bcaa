// Which library should multiply f32 matrices, when every call is single-threaded and our own parallel_for
// cuts a product into tiles? Compares OpenBLAS with oneDNN: its sgemm, its sgemm on weights transposed
// beforehand (the time for that included), its matmul primitive on plain memory, and on weights packed
// beforehand into the layout it asks for (that not included); beside them our matmul ops, which use what was
// chosen (docs/decisions.md).
//   phalanx_bench_matmul_library [--threads N] [--hot] [--json FILE]     --hot: operands stay in the cache
#include <cblas.h>
#include <omp.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <numeric>
#include <oneapi/dnnl/dnnl.hpp>
#include <random>
#include <stdexcept>

#include "bench/report.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/transpose.h"

namespace phalanx::bench {
namespace {

enum class Form { nt, nn, tn };  // forward y = x wᵀ, input gradient dx = dy w, weight gradient dw += dyᵀ x

struct Product {  // c [m, n] = a · b; a is [m, k] or (tn) [k, m], b is [k, n] or (nt) [n, k]
  Form form;
  int64_t m, n, k;

  double operations() const { return 2.0 * static_cast<double>(m * n * k); }
  int64_t a_stride() const { return form == Form::tn ? m : k; }
  int64_t b_stride() const { return form == Form::nt ? k : n; }
};

struct Operands {
  Tensor a, b, c, transposed;
  dnnl::memory packed;
};

enum Way { openblas, sgemm, sgemm_transposed, primitive, packed, ours, kWays };
constexpr const char* kNames[] = {"OpenBLAS", "sgemm", "sgemm wᵀ", "matmul", "packed", "ours"};

bool exists(Way way, Form form) {
  if (way == sgemm_transposed) return form == Form::nt;
  return way != packed || form != Form::tn;
}

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::memory::desc strided(int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  return {{rows, columns}, dnnl::memory::data_type::f32, dnnl::memory::dims{row_stride, column_stride}};
}

dnnl::memory::desc left(const Product& p, int64_t stride) {
  return p.form == Form::tn ? strided(p.m, p.k, 1, stride) : strided(p.m, p.k, stride, 1);
}
dnnl::memory::desc right(const Product& p) {
  return p.form == Form::nt ? strided(p.k, p.n, 1, p.k) : strided(p.k, p.n, p.n, 1);
}

// oneDNN's matmul for one shape. The scratchpad is ours: with the library's own, a primitive may run only on
// the thread that made it.
struct Primitive {
  dnnl::matmul::primitive_desc description;
  dnnl::matmul op;
  dnnl::memory a, b, c, scratch;
  dnnl::stream stream{cpu()};

  Primitive(const Product& p, int64_t a_stride, bool pack) {
    const dnnl::memory::desc any({p.k, p.n}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::any);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    dnnl::post_ops add;
    if (p.form == Form::tn) add.append_sum(1.f);
    attributes.set_post_ops(add);
    const dnnl::matmul::desc wanted(left(p, a_stride), pack ? any : right(p), strided(p.m, p.n, p.n, 1));
    description = {wanted, attributes, cpu()};
    op = dnnl::matmul(description);
    a = {description.src_desc(), cpu(), nullptr};
    b = {description.weights_desc(), cpu(), nullptr};
    c = {description.dst_desc(), cpu(), nullptr};
    scratch = {description.scratchpad_desc(), cpu()};
  }

  void run(const float* pa, const float* pb, float* pc) {
    dnnl_memory_set_data_handle(a.get(), const_cast<float*>(pa));
    dnnl_memory_set_data_handle(b.get(), const_cast<float*>(pb));
    dnnl_memory_set_data_handle(c.get(), pc);
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, a.get()},
                                         {DNNL_ARG_WEIGHTS, b.get()},
                                         {DNNL_ARG_DST, c.get()},
                                         {DNNL_ARG_SCRATCHPAD, scratch.get()}};
    if (dnnl_primitive_execute(op.get(), stream.get(), 4, arguments) != dnnl_success)
      throw std::runtime_error("oneDNN's matmul failed");
  }
};

Primitive& cached(const Product& p, int64_t a_stride, bool pack) {
  thread_local std::map<std::array<int64_t, 6>, std::unique_ptr<Primitive>> cache;
  auto& slot = cache[{static_cast<int64_t>(p.form), p.m, p.n, p.k, a_stride, pack}];
  if (!slot) slot = std::make_unique<Primitive>(p, a_stride, pack);
  return *slot;
}

// Rows [begin, end) of the product, on the calling thread.
void multiply_rows(Way way, Product p, int64_t begin, int64_t end, const Operands& x) {
  omp_set_num_threads(1);  // a setting of the calling thread
  const int64_t lda = p.a_stride();
  const float* a = x.a.data<const float>() + begin * (p.form == Form::tn ? 1 : lda);
  const float* b = x.b.data<const float>();
  float* c = x.c.data<float>() + begin * p.n;
  const float beta = p.form == Form::tn ? 1 : 0;
  const bool ta = p.form == Form::tn;
  const bool tb = p.form == Form::nt;
  p.m = end - begin;
  const auto narrow = [](int64_t n) { return static_cast<blasint>(n); };
  if (way == openblas) {
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, narrow(p.m),
                narrow(p.n), narrow(p.k), 1, a, narrow(lda), b, narrow(p.b_stride()), beta, c, narrow(p.n));
  } else if (way == sgemm) {
    dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', p.m, p.n, p.k, 1, a, lda, b, p.b_stride(), beta, c, p.n);
  } else if (way == sgemm_transposed) {
    dnnl_sgemm('N', 'N', p.m, p.n, p.k, 1, a, lda, x.transposed.data<const float>(), transposed_stride(p.n),
               beta, c, p.n);
  } else {
    const float* from = way == packed ? static_cast<const float*>(x.packed.get_data_handle()) : b;
    cached(p, lda, way == packed).run(a, from, c);
  }
}

constexpr int64_t kTileRows = 128;

void multiply(Way way, const Product& p, const Operands& x) {
  if (way == ours) {
    if (p.form == Form::nt) matmul_nt(x.a, x.b);
    if (p.form == Form::nn) matmul(x.a, x.b);
    if (p.form == Form::tn) matmul_tn_into(x.c, x.a, x.b);
    return;
  }
  if (way == sgemm_transposed) {
    parallel_for(p.n, 64, [&](int64_t begin, int64_t end) {
      transpose_rows(x.b.data<const float>(), p.k, x.transposed.data<float>(), p.n, begin, end);
    });
  }
  parallel_for(p.m, kTileRows, [&](int64_t begin, int64_t end) { multiply_rows(way, p, begin, end, x); });
}

Tensor random_tensor(int64_t rows, int64_t columns) {
  static std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  const Tensor t = Tensor::empty({rows, columns}, DType::f32);
  for (float& v : t.span<float>()) v = uniform(random);
  return t;
}

Operands make_operands(const Product& p) {
  Operands x = {random_tensor(p.form == Form::tn ? p.k : p.m, p.a_stride()),
                random_tensor(p.form == Form::nt ? p.n : p.k, p.b_stride()),
                random_tensor(p.m, p.n),
                Tensor::empty({p.k, transposed_stride(p.n)}, DType::f32),
                {}};
  if (p.form != Form::tn) {
    Product tile = p;
    tile.m = std::min(p.m, kTileRows);
    x.packed = dnnl::memory(cached(tile, p.a_stride(), true).description.weights_desc(), cpu());
    dnnl::memory from(right(p), cpu(), x.b.raw());
    dnnl::stream stream(cpu());
    dnnl::reorder(from, x.packed).execute(stream, from, x.packed);
  }
  return x;
}

// Throws unless all ways agree, in products of numbers in [−1, 1] added to zero.
void check(const Product& p, const Operands& x) {
  Operands y = x;
  y.c = Tensor::zeros(x.c.shape(), DType::f32);
  multiply(openblas, p, y);
  for (const Way way : {sgemm, sgemm_transposed, primitive, packed}) {
    if (!exists(way, p.form)) continue;
    Operands z = x;
    z.c = Tensor::zeros(x.c.shape(), DType::f32);
    multiply(way, p, z);
    if (!std::ranges::equal(y.c.span<float>(), z.c.span<float>(),
                            [](float u, float v) { return std::abs(u - v) < 1e-3f; }))
      throw std::runtime_error(std::string(kNames[way]) + " disagrees with OpenBLAS");
  }
}

struct Options {
  int threads = 1;
  bool hot = false;
};

// Of this thread alone, which a busy machine disturbs least, or by the clock on the wall when there are more.
double now(const Options& options) {
  timespec t{};
  clock_gettime(options.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// GFLOP/s of each way, in turns; medians. Unless hot, operands rotate through 8 MiB: they come from the last
// level of cache, as in a training step.
std::array<double, kWays> speeds(const Product& p, const Options& options) {
  const auto bytes = 4 * (p.m * p.k + p.n * p.k + p.m * p.n);
  std::vector<Operands> sets;
  for (int64_t i = 0; i < (options.hot ? 1 : std::clamp<int64_t>((8 << 20) / bytes, 1, 64)); ++i)
    sets.push_back(make_operands(p));
  check(p, sets[0]);
  const int calls = std::max(1, static_cast<int>(8e7 / p.operations()));
  const int repeats = p.operations() > 1e9 ? 7 : 31;
  std::array<std::vector<double>, kWays> seconds;
  size_t set = 0;
  for (int repeat = -1; repeat < repeats; ++repeat) {
    for (int w = 0; w < kWays; ++w) {
      if (!exists(static_cast<Way>(w), p.form)) continue;
      const double start = now(options);
      for (int i = 0; i < calls; ++i) multiply(static_cast<Way>(w), p, sets[set++ % sets.size()]);
      if (repeat >= 0) seconds[static_cast<size_t>(w)].push_back((now(options) - start) / calls);
    }
  }
  std::array<double, kWays> out{};
  for (size_t w = 0; w < kWays; ++w) {
    if (seconds[w].empty()) continue;
    std::ranges::nth_element(seconds[w], seconds[w].begin() + repeats / 2);
    out[w] = p.operations() / seconds[w][static_cast<size_t>(repeats / 2)] / 1e9;
  }
  return out;
}

struct Linear {
  const char* model;
  int64_t tokens, in, out;
  int uses;  // in a model of this kind

  Product product(Form form) const {
    if (form == Form::tn) return {form, out, in, tokens};
    return form == Form::nt ? Product{form, tokens, out, in} : Product{form, tokens, in, out};
  }
};
constexpr Linear kLinears[] = {{"4 layers of 128", 768, 128, 128, 16},
                               {"4 layers of 128", 768, 128, 512, 4},
                               {"4 layers of 128", 768, 512, 128, 4},
                               {"4 layers of 128", 768, 128, 65, 1},
                               {"6 layers of 384", 1024, 384, 384, 24},
                               {"6 layers of 384", 1024, 384, 1536, 6},
                               {"6 layers of 384", 1024, 1536, 384, 6},
                               {"6 layers of 384", 1024, 384, 65, 1},
                               {"expert of 37 rows", 37, 128, 256, 1},
                               {"expert of 37 rows", 37, 256, 128, 1},
                               {"expert of 150 rows", 150, 128, 256, 1},
                               {"expert of 150 rows", 150, 256, 128, 1},
                               {"cube", 2048, 2048, 2048, 1}};

void add_row(Report& report, const std::string& model, const std::string& product,
             const std::array<double, kWays>& v) {
  nlohmann::ordered_json row = {{"model", model}, {"product", product}};
  for (size_t w = 0; w < kWays; ++w) {
    row[kNames[w]] = v[w] > 0 ? nlohmann::ordered_json(v[w]) : nlohmann::ordered_json("-");
  }
  report.add(row);
}

void measure(const Options& options, Report& report) {
  std::map<std::string, std::array<double, kWays>> seconds;  // of a model's products
  std::map<std::string, double> operations;
  for (const Linear& l : kLinears) {
    for (const auto& [form, name] : {std::pair(Form::nt, "nt"), {Form::nn, "nn"}, {Form::tn, "tn"}}) {
      const Product p = l.product(form);
      const auto v = speeds(p, options);
      add_row(
          report, l.model,
          std::to_string(l.tokens) + "×" + std::to_string(l.in) + "→" + std::to_string(l.out) + " " + name,
          v);
      operations[l.model] += l.uses * p.operations();
      for (size_t w = 0; w < kWays; ++w)  // a way that a form lacks stands for the plain one beside it
        seconds[l.model][w] += l.uses * p.operations() / (v[w] > 0 ? v[w] : v[w - 1]);
    }
  }
  for (auto& [model, s] : seconds) {
    for (double& v : s) v = operations[model] / v;
    add_row(report, model, "all of a step", s);
  }
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
  using namespace phalanx::bench;
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--hot") == 0) options.hot = true;
    if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
      options.threads = std::max(1, std::atoi(argv[++i]));
  }
  omp_set_num_threads(1);
  const phalanx::ThreadScope threads(options.threads);
  Report report("f32 products, GFLOP/s, threads: " + std::to_string(options.threads));
  measure(options, report);
  return report.finish({argv, static_cast<size_t>(argc)});
}
