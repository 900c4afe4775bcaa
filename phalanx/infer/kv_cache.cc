#include "phalanx/infer/kv_cache.h"

#include <algorithm>
#include <cstring>

namespace phalanx {
namespace {

void copy_rows(const Tensor& to, const Tensor& from) {
  if (from.bytes() > 0) std::memcpy(to.raw(), from.raw(), from.bytes());
}

}  // namespace

std::span<const KvSegment> KvCache::append(int layer, const Tensor& k, const Tensor& v) {
  Layer& l = layers_[static_cast<size_t>(layer)];
  for (int64_t done = 0; done < k.rows();) {
    const int64_t filled = l.length % kPageRows;
    if (filled == 0) {
      l.pages.push_back({Tensor::empty(k.shape().with_rows(kPageRows), k.dtype()),
                         Tensor::empty(v.shape().with_rows(kPageRows), v.dtype()), l.length});
      l.segments.emplace_back();
    }
    const int64_t n = std::min(k.rows() - done, kPageRows - filled);
    const KvSegment& page = l.pages.back();
    copy_rows(page.k_SGd.slice(filled, filled + n), k.slice(done, done + n));
    copy_rows(page.v_SGd.slice(filled, filled + n), v.slice(done, done + n));
    l.segments.back() = {page.k_SGd.slice(0, filled + n), page.v_SGd.slice(0, filled + n),
                         page.first_position};
    l.length += n;
    done += n;
  }
  return l.segments;
}

void KvCache::clear() {
  for (Layer& l : layers_) l = Layer();
}

}  // namespace phalanx
