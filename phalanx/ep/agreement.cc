#include "phalanx/ep/agreement.h"

#include <algorithm>
#include <cmath>

namespace phalanx::ep {
namespace {

int64_t dtype_word(const Tensor& t) { return t.defined() ? static_cast<int64_t>(t.dtype()) + 1 : 0; }

// Why there is no memory for the worst number of rows, or "".
std::string no_room(const Tokens& t, const DispatchOptions& o) {
  try {
    PooledVector<Tensor> room;
    for (const Tensor& x : {t.x_TD, t.topk_idx_TK, t.weights_TK, t.scales_TS}) {
      if (x.defined()) room.push_back(Tensor::empty(x.shape().with_rows(o.worst_rows), x.dtype()));
    }
    if (o.sources) room.push_back(Tensor::empty({o.worst_rows, 2}, DType::i64));
    return "";
  } catch (const Error& e) {
    return format("the worst number of rows is {}: {}", o.worst_rows, e.what());
  }
}

// What is wrong with the arguments as such, or "".
std::string wrong(const Tokens& t, const DispatchOptions& o) {
  if (!t.x_TD.defined() || t.x_TD.shape().rank() == 0) return "x is not a tensor of rows";
  if (!t.topk_idx_TK.defined() || t.topk_idx_TK.dtype() != DType::i64 || t.topk_idx_TK.shape().rank() != 2) {
    return "topk_idx is not an i64 tensor [tokens, top-k]";
  }
  const int64_t tokens = t.x_TD.rows();
  const int64_t top_k = t.topk_idx_TK.dim(1);
  if (t.topk_idx_TK.rows() != tokens) {
    return format("topk_idx has {} rows, x {}", t.topk_idx_TK.rows(), tokens);
  }
  if (t.weights_TK.defined()) {
    const DType dtype = t.weights_TK.dtype();
    if (dtype != DType::f32 && dtype != DType::f64)
      return format("weights are {}, not f32", dtype_name(dtype));
    if (t.weights_TK.shape() != t.topk_idx_TK.shape()) {
      return format("weights are {}, topk_idx {}", t.weights_TK.shape(), Shape({tokens, top_k}));
    }
  }
  const Tensor& scales = t.scales_TS;
  if (scales.defined() && (scales.shape().rank() == 0 || scales.rows() != tokens)) {
    return format("scales are {} for {} tokens", scales.shape(), tokens);
  }
  for (const Tensor& x : {t.x_TD, t.topk_idx_TK, t.weights_TK, t.scales_TS}) {
    if (x.device().kind != Device::Kind::cpu) return "a tensor is not on the CPU";
  }
  if (o.expert_alignment < 1 || o.expert_alignment > kMostAlignment) {
    return format("expert_alignment is {}, not 1 to {}", o.expert_alignment, kMostAlignment);
  }
  if (o.worst_rows < 0) return format("the worst number of rows is {}", o.worst_rows);
  if (o.worst_rows > 0 && o.expand) return "expanded rows have no worst number";
  return o.worst_rows > 0 ? no_room(t, o) : "";
}

// The first token that names an expert which does not exist or, if asked, one twice.
void examine_choices(const Tokens& t, bool find_repeated, Statement& s) {
  const int64_t* const idx = t.topk_idx_TK.data<const int64_t>();
  for (int64_t i = 0; i < s.tokens * s.top_k; ++i) {
    const int64_t e = idx[i];
    if (e == -1) continue;
    const int64_t* const token = idx + i / s.top_k * s.top_k;
    const bool exists = e >= 0 && e < s.experts;
    if (exists && !(find_repeated && std::find(token, idx + i, e) != idx + i)) continue;
    s.fault = exists ? Statement::Fault::repeated : Statement::Fault::expert;
    s.token = i / s.top_k;
    s.value = e;
    return;
  }
}

void examine_weights(const Tokens& t, Statement& s) {
  visit_float(t.weights_TK.dtype(), [&](auto kind) {
    const auto weights = t.weights_TK.span<const decltype(kind)>();
    const auto nan = std::ranges::find_if(weights, [](auto w) { return std::isnan(w); });
    if (nan == weights.end()) return;
    s.fault = Statement::Fault::weight;
    s.token = (nan - weights.begin()) / s.top_k;
  });
}

std::string text_of(const Statement& s, bool own, const std::string& why) {
  using Fault = Statement::Fault;
  if (s.fault == Fault::expert) {
    return format("token {} chooses expert {}, there are {}", s.token, s.value, s.experts);
  }
  if (s.fault == Fault::repeated) return format("token {} chooses expert {} twice", s.token, s.value);
  if (s.fault == Fault::weight) return format("token {} has a weight that is not a number", s.token);
  return own ? why : "an argument is wrong (its own error says which)";
}

// What of a rank's statement is not as rank 0's, or "".
std::string difference(const Statement& s, const Statement& of_0) {
  const auto differ = [](const char* what, int64_t here, int64_t there) {
    return format("{} {}, rank 0 {}", what, here, there);
  };
  if (s.experts != of_0.experts) return differ("experts", s.experts, of_0.experts);
  if (s.top_k != of_0.top_k) return differ("top-k", s.top_k, of_0.top_k);
  if (s.dtypes != of_0.dtypes) {
    return "other dtypes than rank 0, or weights or scales where one of the two has none";
  }
  if (s.row_bytes != of_0.row_bytes) return differ("bytes a row", s.row_bytes, of_0.row_bytes);
  if (s.scale_bytes != of_0.scale_bytes) return differ("bytes of scales", s.scale_bytes, of_0.scale_bytes);
  return s.form == of_0.form ? "" : "options of another form of rows than rank 0";
}

}  // namespace

Statement examine(const Tokens& t, const DispatchOptions& options, int64_t experts, bool checked,
                  std::string* why) {
  Statement s = {.experts = experts, .worst_rows = options.worst_rows};
  if (why->empty()) *why = wrong(t, options);
  if (!why->empty()) {
    s.fault = Statement::Fault::argument;
    return s;
  }
  s.tokens = t.x_TD.rows();
  s.top_k = t.topk_idx_TK.dim(1);
  s.row_bytes = static_cast<int64_t>(row_bytes(t.x_TD));
  s.scale_bytes = t.scales_TS.defined() ? static_cast<int64_t>(row_bytes(t.scales_TS)) : 0;
  s.dtypes = dtype_word(t.x_TD) | dtype_word(t.weights_TK) << 8 | dtype_word(t.scales_TS) << 16;
  s.form = (options.expand ? 1 : 0) | (options.sources ? 2 : 0) |
           (options.order == PairOrder::every_slot ? 4 : 0) | (options.rows_later ? 8 : 0);
  examine_choices(t, checked || options.expand, s);
  if (checked && s.fault == Statement::Fault::none && t.weights_TK.defined()) examine_weights(t, s);
  return s;
}

void agree(std::span<const Statement> all, int rank, const std::string& why) {
  int64_t tokens = 0;
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].fault != Statement::Fault::none) {
      throw Error("dispatch: rank {}: {}", r, text_of(all[r], static_cast<int>(r) == rank, why));
    }
    tokens += all[r].tokens;
  }
  for (size_t r = 1; r < all.size(); ++r) {
    const std::string text = difference(all[r], all[0]);
    if (!text.empty()) throw Error("dispatch: rank {} has {}", r, text);
  }
  for (size_t r = 0; r < all.size(); ++r) {
    const int64_t worst = all[r].worst_rows;
    if (worst > 0 && worst < tokens) {
      throw Error("dispatch: rank {} has room for {} rows at worst, all ranks have {} tokens", r, worst,
                  tokens);
    }
  }
}

}  // namespace phalanx::ep
