#include "phalanx/parallel/holders.h"

#include <algorithm>

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

// A name and its shape, as two numbers that other stages can compare.
struct Mark {
  int64_t name = 0;
  int64_t shape = 0;
};

uint64_t fnv1a(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x100000001b3u; }

Mark mark_of(const HeldTensor& tensor) {
  constexpr uint64_t kStart = 0xcbf29ce484222325u;
  uint64_t name = kStart;
  for (const char c : tensor.name) name = fnv1a(name, static_cast<unsigned char>(c));
  uint64_t shape = kStart;
  for (const int64_t extent : tensor.shape.extents()) shape = fnv1a(shape, static_cast<uint64_t>(extent));
  return {static_cast<int64_t>(name), static_cast<int64_t>(shape)};
}

int64_t largest_over(Group& group, int64_t value) {
  const Tensor t = Tensor::of(Shape{1}, std::span<const int64_t>(&value, 1));
  group.all_reduce(t, Reduce::max).wait();
  return t.data<int64_t>()[0];
}

// By stage, the marks of its tensors; stages with fewer are filled up with zeros.
std::vector<std::vector<Mark>> marks_of_stages(std::span<const HeldTensor> tensors, Group& pp) {
  const int64_t most = largest_over(pp, static_cast<int64_t>(tensors.size()));
  const Tensor mine = Tensor::zeros({most, 2}, DType::i64);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Mark mark = mark_of(tensors[i]);
    mine.data<int64_t>()[2 * i] = mark.name;
    mine.data<int64_t>()[2 * i + 1] = mark.shape;
  }
  const Tensor all = pp.all_gather(mine).wait();
  std::vector<std::vector<Mark>> marks(static_cast<size_t>(pp.size()));
  for (int64_t i = 0; i < all.rows(); ++i) {
    const int64_t* mark = all.data<int64_t>() + 2 * i;
    marks[static_cast<size_t>(i / most)].push_back({mark[0], mark[1]});
  }
  return marks;
}

}  // namespace

std::vector<std::vector<int>> holders_of(std::span<const HeldTensor> tensors, Mesh& mesh) {
  std::vector<std::vector<int>> out;
  for (const HeldTensor& t : tensors) out.push_back(holders(t.placement, mesh));
  Group& pp = mesh.group(Axis::pp);
  if (pp.size() == 1) return out;
  const auto marks = marks_of_stages(tensors, pp);
  const int stage_ranks = mesh.world().size() / pp.size();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Mark mine = mark_of(tensors[i]);
    const std::vector<int> here = out[i];
    for (int stage = 0; stage < pp.size(); ++stage) {
      const std::vector<Mark>& there = marks[static_cast<size_t>(stage)];
      const auto same = std::ranges::find(there, mine.name, &Mark::name);
      if (stage == pp.rank() || same == there.end()) continue;
      if (same->shape != mine.shape) {
        throw Error("tensor {} is {} on stage {} and of another shape on stage {}", tensors[i].name,
                    tensors[i].shape, pp.rank(), stage);
      }
      for (const int rank : here) out[i].push_back(rank + (stage - pp.rank()) * stage_ranks);
    }
    std::ranges::sort(out[i]);
  }
  return out;
}

}  // namespace phalanx
