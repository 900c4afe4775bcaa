// What a trainer remembers besides tensors: its step, the data's position, seeds, counters, the schedule's
// state.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>

namespace phalanx {

/// Values by name ("data.epoch", "rng.seed"); equal on every rank and independent of the layout. Saved and
/// read back without a bit's change, infinities and NaNs too.
class TrainerState {
 public:
  using Value = std::variant<bool, int64_t, uint64_t, double, std::string>;

  /// A whole number that fits i64 is kept as one, whichever type it came in.
  void set(std::string key, Value value);
  bool has(std::string_view key) const { return values_.contains(key); }
  /// T: bool, int64_t, uint64_t, double or std::string. Error: no such key, or a value that is not a T.
  template <class T>
  T get(std::string_view key) const;

  const std::map<std::string, Value, std::less<>>& values() const { return values_; }
  friend bool operator==(const TrainerState&, const TrainerState&) = default;

 private:
  std::map<std::string, Value, std::less<>> values_;
};

}  // namespace phalanx
