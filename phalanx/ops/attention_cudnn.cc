// cuDNN's graphs for attention, built once for each kind of call. Its tensors are [batch, heads, rows,
// columns] with strides of our rows of heads.
#include "phalanx/ops/attention_cudnn.h"

#include <map>
#include <memory>
#include <unordered_map>

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include "phalanx/base/error.h"
#include "phalanx/ops/lent.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/stream.h"

namespace phalanx::cuda {
namespace {

namespace fe = cudnn_frontend;
using Graph = fe::graph::Graph;
using GraphTensor = std::shared_ptr<fe::graph::Tensor_attributes>;

void check(cudnnStatus_t status, std::string_view call) {
  if (status != CUDNN_STATUS_SUCCESS) throw Error("{}: {}", call, cudnnGetErrorString(status));
}

// The tensors' names in a graph.
enum Name : int64_t {
  kQ = 1,
  kK,
  kV,
  kY,
  kLogSumExp,
  kDy,
  kDq,
  kDk,
  kDv,
  kQueryCounts,
  kKeyCounts,
  kOffsets,  // of tensor t: kOffsets + t
};

std::string describe(const AttentionCall& c) {
  return format("{} of {} {} sequences of {} queries and {} keys, {} heads of {} and {} columns over {}",
                c.backward ? "backward" : "forward", c.batch, c.ragged ? "ragged" : "equal", c.queries,
                c.keys, c.heads, c.head_dim, c.value_dim, c.kv_heads);
}

class Builder {
 public:
  explicit Builder(const AttentionCall& call) : c_(call), graph_(std::make_unique<Graph>()) {
    graph_->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (c_.ragged) {
      query_counts_ = integers(kQueryCounts, c_.batch, fe::DataType_t::INT32);
      key_counts_ = integers(kKeyCounts, c_.batch, fe::DataType_t::INT32);
      for (const Name name : {kQ, kK, kV, kY, kLogSumExp}) {
        offsets_[name] = integers(kOffsets + name, c_.batch + 1, fe::DataType_t::INT64);
      }
    }
    q_ = graph_->tensor(layout(kQ, kQ));
    k_ = graph_->tensor(layout(kK, kK));
    v_ = graph_->tensor(layout(kV, kV));
  }

  std::unique_ptr<Graph> build() {
    c_.backward ? backward() : forward();
    return std::move(graph_);
  }

 private:
  GraphTensor integers(int64_t uid, int64_t count, fe::DataType_t type) {
    return graph_->tensor(fe::graph::Tensor_attributes()
                              .set_uid(uid)
                              .set_dim({count, 1, 1, 1})
                              .set_stride({1, 1, 1, 1})
                              .set_data_type(type));
  }

  // A tensor that lies as `like` does: one of kQ, kK, kV, kY, kLogSumExp.
  fe::graph::Tensor_attributes layout(Name name, Name like) const {
    const bool of_keys = like == kK || like == kV;
    const int64_t heads = of_keys ? c_.kv_heads : c_.heads;
    const int64_t row_heads = of_keys ? c_.row_kv_heads : c_.row_heads;
    const int64_t rows = of_keys ? c_.keys : c_.queries;
    const int64_t step = c_.ragged ? rows : of_keys ? c_.key_step : c_.query_step;
    const int64_t columns = like == kLogSumExp ? 1 : like == kQ || like == kK ? c_.head_dim : c_.value_dim;
    fe::graph::Tensor_attributes t;
    t.set_uid(name)
        .set_dim({c_.batch, heads, rows, columns})
        .set_stride({step * row_heads * columns, columns, row_heads * columns, 1});
    if (like == kLogSumExp) {
      t.set_data_type(fe::DataType_t::FLOAT);
    } else {
      t.set_data_type(fe::DataType_t::BFLOAT16);
    }
    if (c_.ragged) t.set_ragged_offset(offsets_.at(like));
    return t;
  }

  void set_output(const GraphTensor& tensor, Name name, Name like) const {
    fe::graph::Tensor_attributes t = layout(name, like);
    tensor->set_output(true).set_uid(name).set_dim(t.get_dim()).set_stride(t.get_stride());
    tensor->set_data_type(t.get_data_type());
    if (c_.ragged) tensor->set_ragged_offset(t.get_ragged_offset());
  }

  template <class Attributes>
  void set_common(Attributes& a) const {
    a.set_name("attention").set_attn_scale(c_.scale);
    if (c_.causal) {
      a.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
    }
    if (c_.ragged) a.set_padding_mask(true).set_seq_len_q(query_counts_).set_seq_len_kv(key_counts_);
  }

  void forward() {
    fe::graph::SDPA_attributes a;
    set_common(a);
    a.set_generate_stats(true);
    const auto [y, log_sum_exp] = graph_->sdpa(q_, k_, v_, a);
    set_output(y, kY, kY);
    set_output(log_sum_exp, kLogSumExp, kLogSumExp);
  }

  void backward() {
    const GraphTensor y = graph_->tensor(layout(kY, kY));
    const GraphTensor dy = graph_->tensor(layout(kDy, kY));
    fe::graph::Tensor_attributes kept = layout(kLogSumExp, kLogSumExp);
    // cuDNN before 9.26 reads a dense one in this order whatever its strides say.
    if (!c_.ragged) kept.set_stride({c_.heads * c_.queries, c_.queries, 1, 1});
    const GraphTensor log_sum_exp = graph_->tensor(kept);
    fe::graph::SDPA_backward_attributes a;
    set_common(a);
    a.set_deterministic_algorithm(c_.deterministic);
    if (c_.ragged) a.set_max_total_seq_len_q(c_.query_rows).set_max_total_seq_len_kv(c_.key_rows);
    const auto [dq, dk, dv] = graph_->sdpa_backward(q_, k_, v_, y, dy, log_sum_exp, a);
    set_output(dq, kDq, kQ);
    set_output(dk, kDk, kK);
    set_output(dv, kDv, kV);
  }

  const AttentionCall& c_;
  std::unique_ptr<Graph> graph_;
  GraphTensor q_, k_, v_;
  GraphTensor query_counts_, key_counts_;
  std::map<Name, GraphTensor> offsets_;
};

struct Plan {
  std::unique_ptr<Graph> graph;
  int64_t workspace = 0;
};

struct DestroyHandle {
  using pointer = cudnnHandle_t;
  void operator()(cudnnHandle_t handle) const { (void)cudnnDestroy(handle); }
};

// Each rank (thread) has its own handle and plans, lent to it.
class Library {
 public:
  Library() {
    cudnnHandle_t out = nullptr;
    check(cudnnCreate(&out), "cudnnCreate");
    handle_.reset(out);
  }

  cudnnHandle_t on_current_stream() {
    check(cudnnSetStream(handle_.get(), current_stream().native()), "cudnnSetStream");
    return handle_.get();
  }
  const Plan& plan(const AttentionCall& call) {
    const auto found = plans_.find(call);
    return found != plans_.end() ? found->second : plans_.emplace(call, built(call)).first->second;
  }

  void rest() {}

 private:
  Plan built(const AttentionCall& call) {
    Plan plan = {Builder(call).build()};
    fe::error_t status = plan.graph->build(handle_.get(), {fe::HeurMode_t::A});
    if (status.is_bad()) {
      throw Error("cuDNN {} has no attention in bf16 for this: {}. It says: {}", cudnnGetVersion(),
                  describe(call), status.get_message());
    }
    if (plan.graph->get_workspace_size(plan.workspace).is_bad()) {
      throw Error("cuDNN does not say what workspace it needs: {}", describe(call));
    }
    return plan;
  }

  std::unique_ptr<cudnnHandle_t, DestroyHandle> handle_;
  std::map<AttentionCall, Plan> plans_;
};

std::unordered_map<int64_t, void*> pointers(const AttentionCall& call, const AttentionOperands& o) {
  std::unordered_map<int64_t, void*> p = {
      {kQ, o.q}, {kK, o.k}, {kV, o.v}, {kY, o.y}, {kLogSumExp, o.log_sum_exp}};
  if (call.backward) p.insert({{kDy, o.dy}, {kDq, o.dq}, {kDk, o.dk}, {kDv, o.dv}});
  if (!call.ragged) return p;
  const RaggedSequences& r = o.ragged;
  p.insert({{kOffsets + kQ, r.q},
            {kOffsets + kK, r.k},
            {kOffsets + kV, r.v},
            {kOffsets + kY, r.y},
            {kOffsets + kLogSumExp, r.log_sum_exp},
            {kQueryCounts, r.queries},
            {kKeyCounts, r.keys}});
  return p;
}

}  // namespace

void run_cudnn(const AttentionCall& call, const AttentionOperands& operands) {
  Library& library = Lent<Library>::of_this_thread();
  const Plan& plan = library.plan(call);
  const Tensor workspace = Tensor::empty({plan.workspace}, DType::u8, current_stream().device());
  std::unordered_map<int64_t, void*> p = pointers(call, operands);
  fe::error_t status = plan.graph->execute(library.on_current_stream(), p, workspace.address());
  if (status.is_bad()) throw Error("cuDNN, {}: {}", describe(call), status.get_message());
  queued(call.backward ? "attention_backward by cuDNN" : "attention by cuDNN");
}

}  // namespace phalanx::cuda
