// What costs time to make and serves one thread at a time, handed on from threads that end.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "phalanx/tensor/stream.h"

namespace phalanx::cuda {

/// The calling thread's L of its stream's GPU, made or taken over on first use: a CUDA library's handle and
/// the plans made with it, which later ranks (threads) of the process need not make again. A thread that ends
/// gives it back at rest (L::rest).
template <class L>
class Lent {
 public:
  static L& of_this_thread() {
    static thread_local Lent lent;
    const size_t gpu = current_stream().device().index;
    std::unique_ptr<L>& own = lent.own_[gpu];
    if (!own) own = take(gpu);
    return *own;
  }

  Lent() = default;
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() {
    for (size_t gpu = 0; gpu < own_.size(); ++gpu) {
      if (own_[gpu]) give(gpu, std::move(own_[gpu]));
    }
  }

 private:
  static constexpr size_t kMostGpus = 256;  // as Device counts

  struct Idle {
    std::mutex mutex;
    std::array<std::vector<std::unique_ptr<L>>, kMostGpus> of_gpu;
  };
  static Idle& idle() {
    // lint-allow(raw-memory): never destroyed, CUDA may have ended before
    static Idle* const all = new Idle;
    return *all;
  }
  static std::unique_ptr<L> take(size_t gpu) {
    Idle& all = idle();
    const std::lock_guard lock(all.mutex);
    std::vector<std::unique_ptr<L>>& of_gpu = all.of_gpu[gpu];
    if (of_gpu.empty()) return std::make_unique<L>();
    std::unique_ptr<L> last = std::move(of_gpu.back());
    of_gpu.pop_back();
    return last;
  }
  static void give(size_t gpu, std::unique_ptr<L> library) {
    library->rest();
    Idle& all = idle();
    const std::lock_guard lock(all.mutex);
    all.of_gpu[gpu].push_back(std::move(library));
  }

  std::array<std::unique_ptr<L>, kMostGpus> own_;
};

}  // namespace phalanx::cuda
