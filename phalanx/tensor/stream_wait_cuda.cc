#include "phalanx/tensor/stream_wait.h"

#include <utility>

#include "phalanx/tensor/cuda_check.cuh"

namespace phalanx {
namespace {

thread_local const StreamWaitScope::Look* looks = nullptr;

constexpr std::chrono::microseconds kBetweenLooks(50);

// query() until it no longer says that the GPU is not ready.
template <class Query>
void wait_and_look(Query query, const char* what) {
  using Clock = std::chrono::steady_clock;
  cudaError_t status = query();
  if (status != cudaErrorNotReady) return cuda::check(status, what);
  const Clock::time_point begin = Clock::now();
  Clock::time_point looked = begin;
  while ((status = query()) == cudaErrorNotReady) {
    const Clock::time_point now = Clock::now();
    if (now - looked < kBetweenLooks) continue;
    (*looks)(now - begin);
    looked = Clock::now();
  }
  cuda::check(status, what);
}

}  // namespace

StreamWaitScope::StreamWaitScope(Look look) : look_(std::move(look)), outer_(std::exchange(looks, &look_)) {}
StreamWaitScope::~StreamWaitScope() { looks = outer_; }

namespace cuda {

void wait_for(CUstream_st* stream, const char* what) {
  if (!looks) return check(cudaStreamSynchronize(stream), what);
  wait_and_look([stream] { return cudaStreamQuery(stream); }, what);
}

void wait_for(CUevent_st* event, const char* what) {
  if (!looks) return check(cudaEventSynchronize(event), what);
  wait_and_look([event] { return cudaEventQuery(event); }, what);
}

}  // namespace cuda

}  // namespace phalanx
