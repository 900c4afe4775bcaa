#include "phalanx/train/trainer_state.h"

#include "phalanx/base/error.h"

namespace phalanx {

void TrainerState::set(std::string key, Value value) {
  if (const auto* n = std::get_if<uint64_t>(&value); n && *n <= INT64_MAX) {
    value = static_cast<int64_t>(*n);
  }
  values_.insert_or_assign(std::move(key), std::move(value));
}

template <class T>
T TrainerState::get(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) throw Error("the trainer's state has no \"{}\"", key);
  if (const T* value = std::get_if<T>(&found->second)) return *value;
  if constexpr (std::is_same_v<T, uint64_t>) {
    const auto* n = std::get_if<int64_t>(&found->second);
    if (n && *n >= 0) return static_cast<uint64_t>(*n);
  }
  throw Error("the trainer's state has \"{}\", but as another type than is expected", key);
}

template bool TrainerState::get(std::string_view) const;
template int64_t TrainerState::get(std::string_view) const;
template uint64_t TrainerState::get(std::string_view) const;
template double TrainerState::get(std::string_view) const;
template std::string TrainerState::get(std::string_view) const;

}  // namespace phalanx
