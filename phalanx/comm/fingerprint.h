// What a rank said when it called an operation.
#pragma once

#include <cstdint>
#include <string>

#include "phalanx/tensor/dtype.h"

namespace phalanx {

/// How a collective combines the ranks' values.
enum class Reduce : uint8_t { sum, max, min };

/// Equal on every rank of the group, or the calls do not match.
struct Fingerprint {
  enum class Kind : uint8_t {
    all_reduce,
    reduce_scatter,
    all_gather,
    all_to_all,
    broadcast,
    exchange,
    share,
    unshare,
    barrier,
    low_latency_dispatch,
    low_latency_combine
  };
  static constexpr int kKinds = 11;

  Kind kind = Kind::barrier;
  DType dtype = DType::u8;
  Reduce reduce = Reduce::sum;
  int32_t root = 0;
  /// Of the tensor that each rank brings; all_to_all and the low-latency ones: of a row; exchange and share:
  /// 0.
  int64_t numel = 0;
  friend bool operator==(const Fingerprint&, const Fingerprint&) = default;

  /// "all_reduce(f32[1024], max)".
  std::string text() const;
  /// All of it in two words, and back.
  uint64_t packed() const {
    return static_cast<uint64_t>(kind) << 48 | static_cast<uint64_t>(dtype) << 40 |
           static_cast<uint64_t>(reduce) << 32 | static_cast<uint32_t>(root);
  }
  static Fingerprint unpacked(uint64_t packed, int64_t numel) {
    return {.kind = static_cast<Kind>(packed >> 48),
            .dtype = static_cast<DType>(packed >> 40 & 0xff),
            .reduce = static_cast<Reduce>(packed >> 32 & 0xff),
            .root = static_cast<int32_t>(packed & 0xffffffffu),
            .numel = numel};
  }
};

/// "all_reduce".
const char* kind_name(Fingerprint::Kind kind);

}  // namespace phalanx
