#include "phalanx/infer/kv_cache.h"

#include <gtest/gtest.h>

#include <random>

namespace phalanx {
namespace {

TEST(KvCache, HoldsWhatWasAppendedInOrder) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  constexpr int kLayers = 3;
  constexpr int64_t kWidth = 5;
  KvCache cache(kLayers);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(cache.length(), 0);
    int64_t length = 0;
    while (length < 3 * KvCache::kPageRows) {
      const auto rows = static_cast<int64_t>(random() % 90);
      for (int layer = 0; layer < kLayers; ++layer) {
        // Row p of a layer holds 100 p + layer, and its values the negative of it.
        const Tensor k = Tensor::empty({rows, kWidth}, DType::f64);
        const Tensor v = Tensor::empty({rows, kWidth}, DType::f64);
        for (int64_t i = 0; i < k.numel(); ++i) {
          k.data<double>()[i] = static_cast<double>(100 * (length + i / kWidth) + layer);
          v.data<double>()[i] = -k.data<double>()[i];
        }
        const std::span<const KvSegment> segments = cache.append(layer, k, v);
        int64_t position = 0;
        for (const KvSegment& s : segments) {
          EXPECT_EQ(s.first_position, position);
          EXPECT_LE(s.k_SGd.rows(), KvCache::kPageRows);
          ASSERT_EQ(s.v_SGd.shape(), s.k_SGd.shape());
          for (int64_t i = 0; i < s.k_SGd.numel(); ++i) {
            const auto expected = static_cast<double>(100 * (position + i / kWidth) + layer);
            ASSERT_EQ(s.k_SGd.data<double>()[i], expected);
            ASSERT_EQ(s.v_SGd.data<double>()[i], -expected);
          }
          position += s.k_SGd.rows();
        }
        EXPECT_EQ(position, length + rows);
      }
      length += rows;
      EXPECT_EQ(cache.length(), length);
    }
    cache.clear();
  }
}

}  // namespace
}  // namespace phalanx
