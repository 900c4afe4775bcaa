// A tensor: a value that refers to shared storage.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <utility>

#include "phalanx/base/check.h"
#include "phalanx/tensor/allocator.h"
#include "phalanx/tensor/device.h"
#include "phalanx/tensor/dtype.h"

namespace phalanx {

/// Up to five extents, outermost first. A shape without extents is a scalar: one element.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<int64_t> extents) : Shape(std::span(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const int64_t> extents);

  int rank() const { return rank_; }
  int64_t operator[](int dim) const {
    PHX_CHECK(dim >= 0 && dim < rank_, "dim {} of a tensor of rank {}", dim, static_cast<int>(rank_));
    return extents_[static_cast<size_t>(dim)];
  }
  int64_t numel() const;
  std::span<const int64_t> extents() const { return {extents_.data(), rank_}; }
  operator Arg() const { return extents(); }  // NOLINT: so that messages print shapes
  /// The same shape with another extent of dimension 0.
  Shape with_rows(int64_t rows) const;
  friend bool operator==(const Shape& a, const Shape& b) {
    return std::ranges::equal(a.extents(), b.extents());
  }

 private:
  std::array<int64_t, kMaxRank> extents_{};
  uint8_t rank_ = 0;
};

/// Row-major and contiguous. Copying a Tensor copies the reference; slices of dimension 0 and views share
/// storage. A default-constructed Tensor is empty: defined() is false.
class Tensor {
 public:
  Tensor() = default;
  /// New memory from the calling rank's allocator (on a GPU: its stream's), undefined. Error: too much.
  static Tensor empty(const Shape& shape, DType dtype, Device device = kCpu);
  static Tensor zeros(const Shape& shape, DType dtype, Device device = kCpu);
  /// New memory from that allocator, contents as it gives them.
  static Tensor from(Allocator& allocator, const Shape& shape, DType dtype);
  /// The memory of `storage`, which has one user: this tensor.
  static Tensor adopt(Storage* storage, const Shape& shape, DType dtype);
  template <class T>
  static Tensor of(const Shape& shape, std::span<const T> values);

  Tensor(const Tensor& other) noexcept;
  Tensor(Tensor&& other) noexcept
      : storage_(std::exchange(other.storage_, nullptr)),
        data_(other.data_),
        shape_(other.shape_),
        dtype_(other.dtype_) {}
  Tensor& operator=(Tensor other) noexcept {
    std::swap(storage_, other.storage_);
    data_ = other.data_;
    shape_ = other.shape_;
    dtype_ = other.dtype_;
    return *this;
  }
  ~Tensor() { drop(); }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device : kCpu; }
  bool on_cuda() const { return kHaveCuda && device().is_cuda(); }
  int64_t numel() const { return shape_.numel(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * dtype_size(dtype_); }
  /// Extent of dimension 0, and the number of elements behind one index of it.
  int64_t rows() const { return shape_[0]; }
  int64_t row_size() const { return rows() == 0 ? row_size_of_empty() : numel() / rows(); }

  /// The elements, for the host: the tensor is on the CPU. Constness is that of the reference, not of the
  /// data. T must match the dtype.
  template <class T>
  std::span<T> span() const {
    check_read<T>(Device::Kind::cpu);
    return {reinterpret_cast<T*>(data_), static_cast<size_t>(numel())};
  }
  template <class T>
  T* data() const {
    return span<T>().data();
  }
  std::byte* raw() const {
    check_device(Device::Kind::cpu);
    return data_;
  }
  /// The elements, for kernels: the tensor is on a GPU.
  template <class T>
  T* device_data() const {
    check_read<T>(Device::Kind::cuda);
    return reinterpret_cast<T*>(data_);
  }
  /// The first element, wherever it lies.
  std::byte* address() const { return data_; }
  /// For the allocator and for streams.
  Storage* storage() const { return storage_; }

  /// Rows [begin, end), sharing storage.
  Tensor slice(int64_t begin, int64_t end) const;
  /// The same elements in another shape of as many elements, sharing storage.
  Tensor view(const Shape& shape) const;
  /// A copy on `device`, made on the calling thread's stream (from a GPU to the host it waits for that), or
  /// this tensor if it is there.
  Tensor to(Device device) const;

 private:
  void check_device(Device::Kind kind) const {
    if constexpr (kHaveCuda) {
      PHX_CHECK(device().kind == kind || !storage_, "a tensor on {} read on {}", device_name(device()),
                kind == Device::Kind::cpu ? "the host" : "a GPU");
    }
  }
  template <class T>
  void check_read(Device::Kind kind) const {
    check_device(kind);
    PHX_CHECK(dtype_of<std::remove_const_t<T>> == dtype_, "a {} tensor read as {}", dtype_name(dtype_),
              dtype_name(dtype_of<std::remove_const_t<T>>));
  }
  void drop() noexcept;
  int64_t row_size_of_empty() const;

  Storage* storage_ = nullptr;
  std::byte* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
};

template <class T>
Tensor Tensor::of(const Shape& shape, std::span<const T> values) {
  const Tensor t = empty(shape, dtype_of<std::remove_const_t<T>>);
  PHX_CHECK(static_cast<int64_t>(values.size()) == t.numel(), "{} values for shape {}", values.size(), shape);
  std::copy(values.begin(), values.end(), t.data<std::remove_const_t<T>>());
  return t;
}

/// to = from: equal dtypes and shapes, any devices. Same promises as Tensor::to.
void copy_into(Tensor to, const Tensor& from);
/// The same of any dtypes and shapes with equal bytes.
void copy_bytes(Tensor to, const Tensor& from);
/// Every byte 0, on the calling thread's stream where the tensor is on a GPU.
void zero_into(Tensor t);
/// The number in an f64 [1] tensor; of one on a GPU the host waits for it.
double number_of(const Tensor& t);

}  // namespace phalanx
