// Arrays of NumPy, PyTorch and others as tensors, and back, without a copy (DLPack).
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>

#include "phalanx/tensor/tensor.h"

namespace phalanx::python {

/// Any array on the CPU, C order.
using Array = nanobind::ndarray<nanobind::ro, nanobind::device::cpu, nanobind::c_contig>;

/// A tensor over the array's memory, which stays alive as long as any rank refers to it. `dtype` is our name
/// of what the elements are, of the array's own width ("bf16" for a bf16 array viewed as int16). Called with
/// the GIL. Error: no such dtype, another width, or more than 5 dimensions.
Tensor tensor_of(const Array& array, std::string_view dtype);

/// For Python: None of an undefined tensor.
inline std::optional<Tensor> or_none(const Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

/// Lets go of arrays whose last tensor has gone. Called with the GIL.
void release_arrays();

/// Defines the class Tensor, with dtype, shape, numpy() and torch().
void bind_tensor(nanobind::module_& m);

}  // namespace phalanx::python
