#include "phalanx/train/local_elements.h"

#include <algorithm>

#include "phalanx/model/flops.h"

namespace phalanx {
namespace {

// The layers of a stage as a model of their own.
ModelConfig alone(ModelConfig c, const StagePart& part) {
  c.mtp = 0;
  c.layers = part.end_layer - part.first_layer;
  c.moe.dense_layers = std::clamp(c.moe.dense_layers - part.first_layer, 0, c.layers);
  return c;
}

// Of all depths of multi-token prediction.
int64_t mtp_elements(const ModelConfig& c, const Layout& layout) {
  ModelConfig without = c;
  without.mtp = 0;
  return count_local_parameters(c, layout) - count_local_parameters(without, layout);
}

}  // namespace

Elements elements_of(const ModelConfig& c, const Layout& layout, const std::vector<StagePart>& parts) {
  Elements e;
  e.table = (c.vocabulary + layout.tp - 1) / layout.tp * c.width;
  bool embeds = false;
  bool predicts = false;
  const int64_t norm = c.width * (c.norm == NormKind::layernorm && c.bias ? 2 : 1);
  const int64_t positions = c.positions == Positions::learned ? c.context * c.width : 0;
  const int64_t set_of_experts = c.moe.experts / layout.ep * (3 * c.width * c.moe.expert_width / layout.etp);
  const int64_t ends = norm + positions + e.table * (c.tied ? 1 : 2);
  for (const StagePart& part : parts) {
    const ModelConfig own = alone(c, part);
    const int64_t layers = count_local_parameters(own, layout) - ends;
    e.all += layers;
    if (own.layers > 0) e.layer = std::max(e.layer, layers / own.layers);
    if (c.mlp == MlpKind::moe) {
      const int64_t sets = (own.layers - own.moe.dense_layers + c.moe.share_layers - 1) / c.moe.share_layers;
      e.experts += sets * set_of_experts;
    }
    if (part.predicts && c.mtp > 0) {
      const int64_t depths = mtp_elements(c, layout);
      e.all += depths;
      e.layer = std::max(e.layer, depths / c.mtp);
      e.ends = (c.tied ? 1 : 2) * e.table;
      if (c.has_experts(c.layers)) e.experts += c.mtp * set_of_experts;
    }
    embeds = embeds || part.embeds;
    predicts = predicts || part.predicts;
  }
  if (embeds) e.all += e.table + positions;
  if (predicts) e.all += norm + (c.tied && embeds ? 0 : e.table);
  const bool whole = embeds && predicts;
  const bool looks_up = c.tied || c.mtp > 0;  // the last stage in the embedding, or its copy
  if (predicts && !embeds && !c.tied && c.mtp > 0) e.all += e.table;
  if (looks_up && !whole && (embeds || predicts)) e.over_stages = e.table;
  return e;
}

int64_t shared_out(const Elements& e, const Layout& layout, const ZeroConfig& zero) {
  const int edp = layout.dp * layout.cp * layout.tp / (layout.ep * layout.etp);
  return (e.all - e.experts) / zero.sharers(layout.dp * layout.cp) + e.experts / zero.sharers(edp);
}

}  // namespace phalanx
