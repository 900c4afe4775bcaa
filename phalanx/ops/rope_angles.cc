#include "phalanx/ops/rope_angles.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>

namespace phalanx {
namespace {

constexpr size_t kLargestTable = size_t{64} << 20;  // bytes
constexpr int64_t kFewestPositions = 256;

template <class T>
std::shared_ptr<const AngleTable<T>> extended(const AngleTable<T>& table, int64_t positions) {
  const Rotation& r = table.rotation;
  const auto larger = std::make_shared<AngleTable<T>>(AngleTable<T>{r, positions, table.rows});
  larger->rows.resize(static_cast<size_t>(positions * r.columns()));
  for (int64_t p = table.positions; p < positions; ++p) {
    compute_angles(r, p, larger->rows.data() + p * r.columns());
  }
  return larger;
}

}  // namespace

template <class T>
void compute_angles(const Rotation& r, int64_t position, T* out) {
  const auto half = std::ssize(r.frequencies);
  for (int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * r.frequencies[static_cast<size_t>(i)];
    out[i] = static_cast<T>(r.factor * std::cos(angle));
    out[half + i] = static_cast<T>(r.factor * std::sin(angle));
  }
}

template <class T>
std::shared_ptr<const AngleTable<T>> angle_table(const Rotation& r, int64_t positions) {
  static std::mutex mutex;
  static std::vector<std::shared_ptr<const AngleTable<T>>> tables;
  const std::scoped_lock lock(mutex);
  auto found = std::ranges::find_if(tables, [&](const auto& t) { return t->rotation == r; });
  if (found == tables.end()) {
    found = tables.insert(found, std::make_shared<AngleTable<T>>(AngleTable<T>{r, 0, {}}));
  }
  const auto rounded = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(positions)));
  const int64_t wanted = std::max(kFewestPositions, rounded);
  const bool small = static_cast<size_t>(wanted * r.columns()) <= kLargestTable / sizeof(T);
  if (small && (*found)->positions < positions) *found = extended(**found, wanted);
  return *found;
}

template void compute_angles<float>(const Rotation&, int64_t, float*);
template void compute_angles<double>(const Rotation&, int64_t, double*);
template std::shared_ptr<const AngleTable<float>> angle_table<float>(const Rotation&, int64_t);
template std::shared_ptr<const AngleTable<double>> angle_table<double>(const Rotation&, int64_t);

}  // namespace phalanx
