#include "phalanx/model/hf_weights.h"

#include <algorithm>
#include <map>

#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/model/hf_config.h"
#include "phalanx/model/hf_names.h"
#include "phalanx/model/safetensors_model.h"
#include "phalanx/ops/cast.h"

namespace phalanx {
namespace {

double element(const Tensor& t, int64_t i) {
  switch (t.dtype()) {
    case DType::f64:
      return t.data<const double>()[i];
    case DType::f32:
      return t.data<const float>()[i];
    case DType::bf16:
      return t.data<const bf16>()[i].to_float();
    default:
      return t.data<const f16>()[i].to_float();
  }
}

// A tensor of which elements lie here: a parameter's, or a router's bias.
struct Part {
  std::string name;
  LocalSlice slice;
  Tensor value;  // of the slice's elements first … first + numel − 1
  int64_t first = 0;
};

std::vector<Part> parts_of(ParameterStore& store, HfFamily family) {
  std::vector<Part> parts;
  for (const Parameter& p : store.all()) {
    const bool shared_out = store.keeps_shares();
    parts.push_back({.name = p.name(),
                     .slice = p.slice(),
                     .value = shared_out ? store.own_value(p) : p.value(),
                     .first = shared_out ? store.share_of(p).begin : 0});
  }
  for (const State& s : store.states()) {
    if (family != HfFamily::deepseek_v3) break;  // others have no bias
    parts.push_back({.name = s.name, .slice = whole_slice(s.value.shape()), .value = s.value});
  }
  return parts;
}

// The matrix of a rank's slice of a tensor: its rows' places in the full one, and its columns.
struct LocalRows {
  const LocalSlice& slice;
  int64_t columns;
  int64_t first_column;
  int64_t all_columns;

  explicit LocalRows(const LocalSlice& s) : slice(s), columns(1), first_column(0), all_columns(1) {
    const int last = s.full.rank() - 1;
    if (last == 0) return;
    columns = s.local[last];
    first_column = s.begin[static_cast<size_t>(last)];
    all_columns = s.full[last];
  }
  int64_t global(int64_t row) const { return slice.global_index(row * columns) / all_columns; }
};

// Local rows that a piece fills, and theirs.
struct Moves {
  std::vector<std::pair<int64_t, int64_t>> rows;
  int64_t least = INT64_MAX;  // of their rows
  int64_t most = -1;
};

// Of the rows that have elements here.
Moves moves_of(const HfPiece& piece, const LocalRows& local, const Part& part) {
  Moves moves;
  if (part.value.numel() == 0) return moves;
  const int64_t last = part.first + part.value.numel() - 1;
  for (int64_t row = part.first / local.columns; row <= last / local.columns; ++row) {
    const int64_t at = local.global(row) - piece.begin;
    if (at < 0 || at >= piece.rows) continue;
    const int64_t theirs = piece.their_row(at);
    moves.rows.emplace_back(row, theirs);
    moves.least = std::min(moves.least, theirs);
    moves.most = std::max(moves.most, theirs);
  }
  return moves;
}

Box box_of(const HfPiece& piece, const LocalRows& local, const Moves& moves) {
  if (piece.shape.size() == 1) return {{moves.least}, {moves.most + 1}};
  const int64_t column = local.first_column + piece.first_column;
  if (!piece.transposed) return {{moves.least, column}, {moves.most + 1, column + local.columns}};
  return {{column, moves.least}, {column + local.columns, moves.most + 1}};
}

SafetensorsModel::Entry checked_entry(const SafetensorsModel& model, const HfPiece& piece,
                                      const std::string& parameter) {
  // GPT-2's own checkpoint has its names without the first word.
  std::string name = piece.tensor;
  if (name.starts_with("transformer.") && !model.tensors().contains(name)) name = name.substr(12);
  const auto found = model.tensors().find(name);
  if (found == model.tensors().end()) {
    throw Error("{}: tensor \"{}\" is missing, which {} comes from", model.path().string(), piece.tensor,
                parameter);
  }
  const StoredTensor& stored = *found->second.tensor;
  if (stored.shape != piece.shape) {
    throw Error("{}: tensor \"{}\" has shape {}, {} is expected", found->second.file->path().string(), name,
                std::span(stored.shape), std::span<const int64_t>(piece.shape));
  }
  const auto dtype = dtype_of_safetensors(stored.dtype);
  if (!dtype ||
      (*dtype != DType::f64 && *dtype != DType::f32 && *dtype != DType::bf16 && *dtype != DType::f16)) {
    throw Error("{}: tensor \"{}\" has dtype {}; F64, F32, BF16 or F16 is expected",
                found->second.file->path().string(), name, stored.dtype);
  }
  return found->second;
}

void load_piece(const SafetensorsModel& model, const HfPiece& piece, const Part& part) {
  const SafetensorsModel::Entry entry = checked_entry(model, piece, part.name);
  const LocalRows local(part.slice);
  const Moves moves = moves_of(piece, local, part);
  if (moves.rows.empty()) return;
  const Box box = box_of(piece, local, moves);
  const Tensor read = Tensor::empty(box.extents(), *dtype_of_safetensors(entry.tensor->dtype));
  entry.file->load(*entry.tensor, box, read);
  const int64_t height = moves.most + 1 - moves.least;
  visit_float(part.value.dtype(), [&](auto t) {
    using T = decltype(t);
    const std::span<T> to = part.value.span<T>();
    for (const auto& [row, theirs] : moves.rows) {
      for (int64_t c = 0; c < local.columns; ++c) {
        const int64_t element_here = row * local.columns + c - part.first;
        if (element_here < 0 || element_here >= std::ssize(to)) continue;
        const int64_t at = theirs - moves.least;
        const int64_t from = piece.transposed ? c * height + at : at * local.columns + c;
        to[static_cast<size_t>(element_here)] = static_cast<T>(element(read, from));
      }
    }
  });
}

// Error: the family's routers have no bias, and one here is not zero.
void refuse_biases(const ParameterStore& store, HfFamily family) {
  if (family == HfFamily::deepseek_v3) return;
  for (const State& s : store.states()) {
    const Tensor bias = s.value.to(kCpu);
    for (int64_t e = 0; e < bias.numel(); ++e) {
      if (element(bias, e) == 0) continue;
      throw Error("{} is not zero: of Hugging Face's models only DeepSeek's have such a bias", s.name);
    }
  }
}

// Their tensors of the whole model, by name, filled in from ours.
std::map<std::string, Tensor> their_tensors(ParameterStore& store, const ModelConfig& c) {
  const HfFamily family = hf_family(c);
  refuse_biases(store, family);
  std::map<std::string, Tensor> out;
  for (Part part : parts_of(store, family)) {
    PHX_CHECK(part.value.numel() == part.slice.full.numel(), "{}: a part of it is here", part.name);
    part.value = part.value.to(kCpu);
    const LocalRows ours(part.slice);
    for (const HfPiece& piece : hf_pieces(c, family, part.name, part.slice.full)) {
      Tensor& to = out[piece.tensor];
      if (!to.defined()) to = Tensor::zeros(Shape(std::span<const int64_t>(piece.shape)), part.value.dtype());
      const int64_t stride = to.shape().rank() == 1 ? 1 : to.dim(1);
      visit_float(to.dtype(), [&](auto t) {
        using T = decltype(t);
        for (int64_t i = 0; i < piece.rows; ++i) {
          const T* from = part.value.data<const T>() + (piece.begin + i) * ours.columns;
          const int64_t row = piece.their_row(i);
          for (int64_t k = 0; k < ours.columns; ++k) {
            const int64_t column = piece.first_column + k;
            to.data<T>()[piece.transposed ? column * stride + row : row * stride + column] = from[k];
          }
        }
      });
    }
  }
  for (const auto& [copy, original] : hf_copies(c)) out[copy] = out.at(original);
  return out;
}

}  // namespace

void load_hf_weights(ParameterStore& parameters, const ModelConfig& c,
                     const std::filesystem::path& directory) {
  const SafetensorsModel model = SafetensorsModel::open(directory);
  const HfFamily family = hf_family(c);
  for (const Part& part : parts_of(parameters, family)) {
    Part here = part;
    const bool rounds = part.value.dtype() == DType::bf16;
    here.value = rounds ? Tensor::empty(part.value.shape(), DType::f32) : part.value.to(kCpu);
    for (const HfPiece& piece : hf_pieces(c, family, part.name, part.slice.full)) {
      load_piece(model, piece, here);
    }
    if (rounds) {
      narrow_into(part.value, here.value);
    } else if (part.value.on_cuda()) {
      copy_into(part.value, here.value);
    }
  }
}

void save_hf_model(ParameterStore& parameters, const ModelConfig& c, const std::filesystem::path& directory) {
  const std::string config = hf_config_text(c, parameters.dtype());
  const std::map<std::string, Tensor> tensors = their_tensors(parameters, c);
  make_directory(directory);
  std::vector<TensorToStore> headers;
  for (const auto& [name, t] : tensors) headers.push_back({name, t.dtype(), t.shape()});
  SafetensorsWriter writer(directory / "model.safetensors", headers, {{"format", "pt"}});
  for (const auto& [name, t] : tensors) writer.append(std::span<const std::byte>(t.raw(), t.bytes()));
  writer.finish();
  write_new_file(directory / "config.json", config);
  sync_directory(directory);
}

}  // namespace phalanx
