#include "phalanx/tensor/tensor.h"

#include <algorithm>
#include <cstring>

#include "phalanx/base/error.h"
#include "phalanx/tensor/cuda_tensor.h"

namespace phalanx {

Shape::Shape(std::span<const int64_t> extents) : rank_(static_cast<uint8_t>(extents.size())) {
  PHX_CHECK(extents.size() <= kMaxRank, "{} dimensions, at most {}", extents.size(), kMaxRank);
  for (const int64_t n : extents) PHX_CHECK(n >= 0, "negative extent in shape {}", extents);
  std::ranges::copy(extents, extents_.begin());
}

int64_t Shape::numel() const {
  int64_t n = 1;
  for (const int64_t e : extents()) n *= e;
  return n;
}

Shape Shape::with_rows(int64_t rows) const {
  Shape s = *this;
  PHX_CHECK(rank_ > 0, "rows of a scalar");
  s.extents_[0] = rows;
  return s;
}

namespace {
size_t bytes_of(const Shape& shape, DType dtype) {
  size_t bytes = dtype_size(dtype);
  for (const int64_t n : shape.extents()) {
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(n), &bytes)) {
      throw Error("a tensor of shape {} has more bytes than 64 bits can count", shape);
    }
  }
  return bytes;
}

}  // namespace

Allocator& allocator_of(Device device) {
  if (!device.is_cuda()) return cpu_allocator();
  if constexpr (kHaveCuda) return cuda::allocator(device);
  throw Error("a tensor on {} in a build without CUDA: build with `cmake --preset cuda`",
              device_name(device));
}

Tensor Tensor::from(Allocator& allocator, const Shape& shape, DType dtype) {
  return adopt(allocator.allocate(bytes_of(shape, dtype)), shape, dtype);
}

Tensor Tensor::adopt(Storage* storage, const Shape& shape, DType dtype) {
  Tensor t;
  t.storage_ = storage;
  t.data_ = storage->data;
  t.shape_ = shape;
  t.dtype_ = dtype;
  return t;
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  return from(allocator_of(device), shape, dtype);
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  zero_into(t);
  return t;
}

Tensor Tensor::to(Device device) const {
  if (device == this->device()) return *this;
  const Tensor t = empty(shape_, dtype_, device);
  copy_into(t, *this);
  return t;
}

void copy_into(Tensor to, const Tensor& from) {
  PHX_CHECK(to.dtype() == from.dtype() && to.shape() == from.shape(), "a copy of {} {} into {} {}",
            dtype_name(from.dtype()), from.shape(), dtype_name(to.dtype()), to.shape());
  copy_bytes(std::move(to), from);
}

void copy_bytes(Tensor to, const Tensor& from) {
  PHX_CHECK(to.bytes() == from.bytes(), "a copy of {} bytes to {}", from.bytes(), to.bytes());
  if (to.bytes() == 0) return;
  if constexpr (kHaveCuda) {
    if (to.on_cuda() || from.on_cuda()) return cuda::copy(to, from);
  }
  std::memmove(to.raw(), from.raw(), to.bytes());
}

void zero_into(Tensor t) {
  if (t.bytes() == 0) return;
  if constexpr (kHaveCuda) {
    if (t.on_cuda()) return cuda::zero(t);
  }
  std::memset(t.raw(), 0, t.bytes());
}

double number_of(const Tensor& t) {
  PHX_CHECK(t.numel() == 1, "the number in a tensor {}", t.shape());
  return t.to(kCpu).data<const double>()[0];
}

Tensor::Tensor(const Tensor& other) noexcept
    : storage_(other.storage_), data_(other.data_), shape_(other.shape_), dtype_(other.dtype_) {
  if (storage_) storage_->users.fetch_add(1, std::memory_order_relaxed);
}

void Tensor::drop() noexcept {
  if (storage_ && storage_->users.fetch_sub(1, std::memory_order_acq_rel) == 1)
    storage_->home->release(storage_);
  storage_ = nullptr;
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  PHX_CHECK(begin >= 0 && begin <= end && end <= rows(), "rows {}..{} of shape {}", begin, end, shape_);
  Tensor t = *this;
  t.shape_ = shape_.with_rows(end - begin);
  t.data_ += static_cast<size_t>(begin * row_size()) * dtype_size(dtype_);
  return t;
}

Tensor Tensor::view(const Shape& shape) const {
  PHX_CHECK(shape.numel() == numel(), "shape {} viewed as {}", shape_, shape);
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

int64_t Tensor::row_size_of_empty() const {
  int64_t n = 1;
  for (int i = 1; i < shape_.rank(); ++i) n *= shape_[i];
  return n;
}

}  // namespace phalanx
