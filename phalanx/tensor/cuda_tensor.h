// What tensors need of CUDA, declared without its headers; defined when kHaveCuda.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx::cuda {

/// cuda_initialise, with CUDA.
int initialise(const CudaOptions& options);

/// A stream of `device`, the calling thread's for as long as the result lives.
std::shared_ptr<void> enter(Device device);
/// A stream of low priority, and a scope in which it is the calling thread's, behind what that has queued.
std::shared_ptr<void> background(Device device);
std::shared_ptr<void> enter_background(const std::shared_ptr<void>& stream);
/// current_stream().synchronise().
void synchronise();
/// Of the calling thread's stream: wait for each op from now on, and the one that was queued last.
void wait_for_each_op(bool on);
std::string_view last_op();
/// Bytes of memory of a GPU.
uint64_t memory_of(Device device);

/// The pool of the calling thread's stream, which must be one of `device`.
Allocator& allocator(Device device);

// All of these are queued on the calling thread's stream.

/// Sets all bytes to zero.
void zero(const Tensor& t);
/// Sets an i64 [1] tensor.
void set_count(const Tensor& t, int64_t value);
/// to = from, of equal bytes, at least one of them on a GPU. Where the host writes or reads, it goes through
/// pinned staging: from the host returns when `from` may be changed, to the host when `to` is complete.
void copy(const Tensor& to, const Tensor& from);

}  // namespace phalanx::cuda
