#include "python/native/array.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <mutex>

#include "phalanx/base/error.h"

namespace phalanx::python {
namespace nb = nanobind;
namespace {

// One array, and the one block of memory in it. The last tensor may go on a rank's thread, where the GIL must
// not be waited for: what has gone there is collected, and released by the next call that has it.
class ArrayMemory final : public Allocator {
 public:
  explicit ArrayMemory(Array array) : array_(std::move(array)) {}

  Storage* allocate(size_t bytes) override {
    storage_.data = const_cast<std::byte*>(static_cast<const std::byte*>(array_.data()));
    storage_.capacity = bytes;
    storage_.home = this;
    storage_.users.store(1, std::memory_order_relaxed);
    return &storage_;
  }
  void release(Storage*) noexcept override {
    if (Py_IsInitialized() && PyGILState_Check()) {
      const std::unique_ptr<ArrayMemory> last(this);
      return;
    }
    const std::lock_guard lock(gone_mutex());
    next_gone_ = std::exchange(gone(), this);
  }
  MemoryStats stats() const override { return {}; }
  void reset_peak() override {}

  static void release_gone() {
    ArrayMemory* first = nullptr;
    {
      const std::lock_guard lock(gone_mutex());
      first = std::exchange(gone(), nullptr);
    }
    while (first) {
      const std::unique_ptr<ArrayMemory> last(std::exchange(first, first->next_gone_));
    }
  }

 private:
  static std::mutex& gone_mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static ArrayMemory*& gone() {
    static ArrayMemory* first = nullptr;
    return first;
  }

  Array array_;
  Storage storage_;
  ArrayMemory* next_gone_ = nullptr;
};

constexpr DType kAll[] = {DType::f64, DType::f32, DType::bf16, DType::f16,    DType::i64,
                          DType::i32, DType::i8,  DType::u8,   DType::f8e4m3, DType::f8e5m2};

DType dtype_named(std::string_view name) {
  for (const DType d : kAll) {
    if (dtype_name(d) == name) return d;
  }
  throw Error("no dtype is called {}", name);
}

// What an array of this dtype is called outside: bf16 goes out as int16 and FP8 as uint8, since few
// know them.
nb::dlpack::dtype outside(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return nb::dtype<double>();
    case DType::f32:
      return nb::dtype<float>();
    case DType::bf16:
      return nb::dtype<int16_t>();
    case DType::f16:
      return {static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
    case DType::i64:
      return nb::dtype<int64_t>();
    case DType::i32:
      return nb::dtype<int32_t>();
    case DType::i8:
      return nb::dtype<int8_t>();
    default:
      return nb::dtype<uint8_t>();
  }
}

// The tensor's Python object owns what comes out.
template <class Framework>
auto array_of(const nb::object& self) {
  const auto& t = nb::cast<const Tensor&>(self);
  std::vector<size_t> shape;
  for (const int64_t n : t.shape().extents()) shape.push_back(static_cast<size_t>(n));
  return nb::ndarray<Framework>(t.raw(), shape.size(), shape.data(), self, nullptr, outside(t.dtype()));
}

std::vector<int64_t> shape_of(const Tensor& t) {
  return {t.shape().extents().begin(), t.shape().extents().end()};
}

}  // namespace

Tensor tensor_of(const Array& array, std::string_view name) {
  const DType dtype = dtype_named(name);
  if (array.itemsize() != dtype_size(dtype))
    throw Error("{} of elements of {} bytes", name, array.itemsize());
  if (array.ndim() > static_cast<size_t>(Shape::kMaxRank)) {
    throw Error("an array of {} dimensions; at most {} are taken", array.ndim(), Shape::kMaxRank);
  }
  std::vector<int64_t> extents;
  for (size_t i = 0; i < array.ndim(); ++i) extents.push_back(static_cast<int64_t>(array.shape(i)));
  const Shape shape{std::span<const int64_t>(extents)};
  if (shape.numel() == 0) return Tensor::empty(shape, dtype);
  auto memory = std::make_unique<ArrayMemory>(array);
  Tensor out = Tensor::from(*memory, shape, dtype);
  (void)memory.release();  // it goes with its last tensor
  return out;
}

void release_arrays() { ArrayMemory::release_gone(); }

void bind_tensor(nb::module_& m) {
  nb::class_<Tensor>(m, "Tensor", "A tensor on the CPU, row-major.")
      .def_prop_ro("dtype", [](const Tensor& t) { return std::string(dtype_name(t.dtype())); })
      .def_prop_ro("shape", &shape_of)
      .def("numpy", &array_of<nb::numpy>, "As a NumPy array over the same memory; bf16 as int16.")
      .def("torch", &array_of<nb::pytorch>, "As a PyTorch tensor over the same memory; bf16 as int16.");
  m.def(
      "tensor", [](const Array& array, const std::string& dtype) { return tensor_of(array, dtype); },
      nb::arg("array").noconvert(), nb::arg("dtype"), "A tensor over the array's memory.");
}

}  // namespace phalanx::python
