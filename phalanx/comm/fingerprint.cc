#include "phalanx/comm/fingerprint.h"

#include <array>

namespace phalanx {

const char* kind_name(Fingerprint::Kind kind) {
  static constexpr std::array<const char*, Fingerprint::kKinds> kNames = {
      "all_reduce", "reduce_scatter", "all_gather", "all_to_all",           "broadcast",          "exchange",
      "share",      "unshare",        "barrier",    "low_latency_dispatch", "low_latency_combine"};
  return static_cast<size_t>(kind) < kNames.size() ? kNames[static_cast<size_t>(kind)] : "?";
}

std::string Fingerprint::text() const {
  static constexpr std::array kReductions = {"sum", "max", "min"};
  std::string s = kind_name(kind);
  if (kind == Kind::barrier || kind == Kind::unshare || kind == Kind::exchange) return s;
  if (kind == Kind::share) return s + format("({})", dtype_name(dtype));
  const bool rows = kind == Kind::all_to_all || kind >= Kind::low_latency_dispatch;
  s += format(rows ? "({}, rows of {}" : "({}[{}]", dtype_name(dtype), numel);
  if (kind == Kind::all_reduce || kind == Kind::reduce_scatter) {
    s += format(", {}", kReductions[static_cast<size_t>(reduce) % kReductions.size()]);
  }
  if (kind == Kind::broadcast) s += format(", root {}", root);
  return s + ")";
}

}  // namespace phalanx
