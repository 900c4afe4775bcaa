#include "phalanx/comm/mesh.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

constexpr std::array<std::string_view, kAxes> kNames = {"pp", "dp", "cp", "tp", "edp", "ep", "etp"};

struct NamedSize {
  std::string_view name;
  int Layout::*size;
};
constexpr std::array<NamedSize, 6> kSizes = {{{"pp", &Layout::pp},
                                              {"dp", &Layout::dp},
                                              {"cp", &Layout::cp},
                                              {"tp", &Layout::tp},
                                              {"ep", &Layout::ep},
                                              {"etp", &Layout::etp}}};

}  // namespace

std::string_view axis_name(Axis axis) { return kNames[static_cast<size_t>(axis)]; }

std::string Layout::text() const {
  std::string s;
  for (const NamedSize& n : kSizes) {
    if (this->*n.size > 1) s += format("{}{}={}", s.empty() ? "" : ",", n.name, this->*n.size);
  }
  return s.empty() ? "dp=1" : s;
}

Layout Layout::parse(std::string_view text) {
  Layout layout;
  for (size_t at = 0; at < text.size();) {
    const std::string_view item = text.substr(at, text.find(',', at) - at);
    at += item.size() + 1;
    const size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    int size = 0;
    if (equals != std::string_view::npos) {
      const char* end = item.data() + item.size();
      if (std::from_chars(item.data() + equals + 1, end, size).ptr != end) size = 0;
    }
    bool known = false;
    for (const NamedSize& n : kSizes) {
      if (n.name != name) continue;
      known = true;
      layout.*n.size = size;
    }
    if (!known || size < 1) {
      throw Error("layout \"{}\": \"{}\" is not an axis (pp, dp, cp, tp, ep, etp) = a size of at least 1",
                  text, item);
    }
  }
  return layout;
}

Mesh::Mesh(Group& world, const Layout& layout) : world_(world), layout_(layout) {
  const int stage_ranks = layout.dp * layout.cp * layout.tp;
  const int expert_ranks = layout.ep * layout.etp;
  if (layout.ranks() != world.size()) {
    throw Error("layout {} has {} ranks, the world {}", layout.text(), layout.ranks(), world.size());
  }
  if (stage_ranks % expert_ranks != 0) {
    throw Error("layout {}: ep·etp = {} does not divide the dp·cp·tp = {} ranks of a stage", layout.text(),
                expert_ranks, stage_ranks);
  }
  const int edp = stage_ranks / expert_ranks;
  sizes_ = {layout.pp, layout.dp, layout.cp, layout.tp, edp, layout.ep, layout.etp};
  strides_ = {stage_ranks, layout.cp * layout.tp, layout.tp, 1, expert_ranks, layout.etp, 1};
  coordinates_ = coordinates_of(world.rank());
  for (size_t a = 0; a < kAxes; ++a) {
    const int first = world.rank() - coordinates_[a] * strides_[a];
    std::vector<int> members;
    for (int i = 0; i < sizes_[a]; ++i) members.push_back(first + i * strides_[a]);
    groups_.push_back(world.subgroup(std::string(kNames[a]), members));
  }
}

Coordinates Mesh::coordinates_of(int world_rank) const {
  Coordinates c{};
  for (size_t a = 0; a < kAxes; ++a) c[a] = world_rank / strides_[a] % sizes_[a];
  return c;
}

std::vector<int> Mesh::stage_ranks() const {
  std::vector<int> ranks(static_cast<size_t>(world_.size() / size(Axis::pp)));
  std::iota(ranks.begin(), ranks.end(), coordinate(Axis::pp) * static_cast<int>(ranks.size()));
  return ranks;
}

Group& Mesh::group(const std::string& name, const std::vector<int>& members) {
  const auto same = std::ranges::find_if(
      others_, [&](const Group& g) { return g.name() == name && g.info().members == members; });
  return same != others_.end() ? *same : others_.emplace_back(world_.subgroup(name, members));
}

Traffic Mesh::traffic() const {
  Traffic sum = world_.traffic();
  for (const Group& g : groups_) sum += g.traffic();
  for (const Group& g : others_) sum += g.traffic();
  return sum;
}

}  // namespace phalanx
