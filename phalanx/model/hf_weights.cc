#include "phalanx/model/hf_weights.h"

#include <algorithm>
#include <map>

#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/model/hf_config.h"
#include "phalanx/model/hf_names.h"
#include "phalanx/model/safetensors_model.h"

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

// The matrix of a rank's part of a parameter: its rows' places in the full one, and its columns.
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
  int64_t count() const { return slice.local.numel() / std::max<int64_t>(columns, 1); }
  int64_t global(int64_t row) const { return slice.global_index(row * columns) / all_columns; }
};

// Local rows that a piece fills, and theirs.
struct Moves {
  std::vector<std::pair<int64_t, int64_t>> rows;
  int64_t least = INT64_MAX;  // of their rows
  int64_t most = -1;
};

Moves moves_of(const HfPiece& piece, const LocalRows& local) {
  Moves moves;
  for (int64_t row = 0; row < local.count(); ++row) {
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
  const int64_t column = local.first_column;
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

void load_piece(const SafetensorsModel& model, const HfPiece& piece, Parameter& p) {
  const SafetensorsModel::Entry entry = checked_entry(model, piece, p.name());
  const LocalRows local(p.slice());
  const Moves moves = moves_of(piece, local);
  if (moves.rows.empty() || local.columns == 0) return;
  const Box box = box_of(piece, local, moves);
  const Tensor part = Tensor::empty(box.extents(), *dtype_of_safetensors(entry.tensor->dtype));
  entry.file->load(*entry.tensor, box, part);
  const int64_t height = moves.most + 1 - moves.least;
  visit_float(p.value().dtype(), [&](auto t) {
    using T = decltype(t);
    T* const to = p.value().data<T>();
    for (const auto& [row, theirs] : moves.rows) {
      for (int64_t c = 0; c < local.columns; ++c) {
        const int64_t at = theirs - moves.least;
        const int64_t from = piece.transposed ? c * height + at : at * local.columns + c;
        to[row * local.columns + c] = static_cast<T>(element(part, from));
      }
    }
  });
}

std::string correction_bias(int layer) {
  return format("model.layers.{}.mlp.gate.e_score_correction_bias", layer);
}

void refuse_correction_bias(const SafetensorsModel& model, const ModelConfig& c) {
  for (int layer = c.moe.dense_layers; layer < c.layers; ++layer) {
    const auto found = model.tensors().find(correction_bias(layer));
    if (found == model.tensors().end()) continue;
    const auto& [file, stored] = found->second;
    const HfPiece piece = {.tensor = stored->name, .shape = {c.moe.experts}};
    checked_entry(model, piece, "the router");
    const Tensor bias = Tensor::empty({c.moe.experts}, *dtype_of_safetensors(stored->dtype));
    file->load(*stored, whole(bias.shape()), bias);
    for (int64_t e = 0; e < c.moe.experts; ++e) {
      if (element(bias, e) == 0) continue;
      throw Error("{}: tensor \"{}\" is not zero: routers here have no correction bias",
                  file->path().string(), stored->name);
    }
  }
}

// Their tensors of the whole model, by name, filled in from ours.
std::map<std::string, Tensor> their_tensors(ParameterStore& parameters, const ModelConfig& c) {
  std::map<std::string, Tensor> out;
  for (const Parameter& p : parameters.all()) {
    PHX_CHECK(p.slice().local == p.slice().full, "{}: a part of the parameter is here", p.name());
    const LocalRows ours(p.slice());
    for (const HfPiece& piece : hf_pieces(c, hf_family(c), p.name(), p.slice().full)) {
      Tensor& to = out[piece.tensor];
      if (!to.defined()) to = Tensor::zeros(Shape(std::span<const int64_t>(piece.shape)), p.value().dtype());
      const int64_t stride = to.shape().rank() == 1 ? 1 : to.dim(1);
      visit_float(to.dtype(), [&](auto t) {
        using T = decltype(t);
        for (int64_t i = 0; i < piece.rows; ++i) {
          const T* from = p.value().data<const T>() + (piece.begin + i) * ours.columns;
          const int64_t row = piece.their_row(i);
          for (int64_t k = 0; k < ours.columns; ++k) {
            to.data<T>()[piece.transposed ? k * stride + row : row * stride + k] = from[k];
          }
        }
      });
    }
  }
  if (c.attention != AttentionKind::mla || c.mlp != MlpKind::moe) return out;
  for (int layer = c.moe.dense_layers; layer < c.layers; ++layer) {
    out[correction_bias(layer)] = Tensor::zeros({c.moe.experts}, parameters.dtype());
  }
  return out;
}

}  // namespace

void load_hf_weights(ParameterStore& parameters, const ModelConfig& c,
                     const std::filesystem::path& directory) {
  const SafetensorsModel model = SafetensorsModel::open(directory);
  const HfFamily family = hf_family(c);
  for (Parameter& p : parameters.all()) {
    for (const HfPiece& piece : hf_pieces(c, family, p.name(), p.slice().full)) load_piece(model, piece, p);
  }
  if (family == HfFamily::deepseek_v3 && c.mlp == MlpKind::moe) refuse_correction_bias(model, c);
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
