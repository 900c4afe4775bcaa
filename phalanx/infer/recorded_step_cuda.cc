#include "phalanx/infer/recorded_step.h"

#include <cuda_runtime_api.h>

#include "phalanx/tensor/allocator_cuda.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/stream.h"

namespace phalanx::cuda {
namespace {

class Recorded {
 public:
  explicit Recorded(Device device) : stream_(device) {}
  Recorded(const Recorded&) = delete;
  Recorded& operator=(const Recorded&) = delete;
  ~Recorded() {
    if (graph_) (void)cudaGraphExecDestroy(graph_);
  }

  void run(FunctionRef<void()> step) {
    // Of earlier steps, whose faults have arrived by now or will by a later call.
    if (stream_.state().staging().fault->kind != FaultKind::none) stream_.synchronise();
    Stream& caller = current_stream();
    before_.record(caller);
    stream_.wait(before_);
    if (runs_ == 1) record(step);
    if (graph_) {
      check(cudaGraphLaunch(graph_, stream_.native()), "cudaGraphLaunch");
    } else {
      const StreamScope scope(stream_);
      step();
      stream_.state().fetch_fault();
    }
    ++runs_;
    after_.record(stream_);
    caller.wait(after_);
  }

 private:
  void record(FunctionRef<void()> step) {
    const StreamScope scope(stream_);
    cudaGraph_t graph = nullptr;
    // Relaxed: other threads may allocate meanwhile, and so may this one.
    check(cudaStreamBeginCapture(stream_.native(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
    try {
      step();
      stream_.state().fetch_fault();
    } catch (...) {
      (void)cudaStreamEndCapture(stream_.native(), &graph);
      if (graph) (void)cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream_.native(), &graph), "cudaStreamEndCapture");
    const cudaError_t made = cudaGraphInstantiate(&graph_, graph, 0);
    (void)cudaGraphDestroy(graph);
    check(made, "cudaGraphInstantiate");
  }

  Stream stream_;
  Event before_;  // the end of what the caller had queued
  Event after_;
  cudaGraphExec_t graph_ = nullptr;
  int64_t runs_ = 0;
};

}  // namespace

void run_recorded(std::shared_ptr<void>& recorded, FunctionRef<void()> step) {
  if (!recorded) recorded = std::make_shared<Recorded>(current_stream().device());
  static_cast<Recorded*>(recorded.get())->run(step);
}

}  // namespace phalanx::cuda
