"""Arrays of the caller as tensors of the library, and back: the same memory, and the kind that was given."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any, Optional, Sequence, Union

import numpy as np

from phalanx import _native
from phalanx.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    Array = Union[np.ndarray, torch.Tensor]
else:
    Array = Any

NAMES = {"float64": "f64", "float32": "f32", "bfloat16": "bf16", "float16": "f16", "float8_e4m3fn": "f8e4m3",
         "float8_e5m2": "f8e5m2", "int64": "i64", "int32": "i32", "int8": "i8", "uint8": "u8", "bool": "u8"}
OUTSIDE = {ours: theirs for theirs, ours in NAMES.items() if theirs != "bool"}
PLAIN = {"bf16": "int16", "f8e4m3": "uint8", "f8e5m2": "uint8"}  # what few know travels under another name


def torch_of(x: Any) -> Any:
    """The module torch if x is one of its tensors, else None; torch is never imported for that."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, getattr(torch, "Tensor", ())) else None


def dtype_name(x: Array) -> Optional[str]:
    """Our name of an array's dtype ("f32"), or None for one that the library does not know."""
    return NAMES.get(str(x.dtype).rpartition(".")[2])


def expect(condition: Any, text: str) -> None:
    """ArgumentError unless the condition holds."""
    if not condition:
        raise ArgumentError(text)


def integer(name: str, value: Any, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """The value as an int; ArgumentError unless it is a whole number from least to most."""
    expect(isinstance(value, (int, np.integer)), f"{name} is a {type(value).__name__}; it must be an integer")
    expect(least <= value <= most, f"{name} is {value}; it must be {least} to {most}")
    return int(value)


def check(name: str, x: Any, dtypes: Optional[Sequence[str]] = None,
          shape: Optional[Sequence[Optional[int]]] = None) -> None:
    """ArgumentError unless x is an array on the CPU, contiguous, of one of the dtypes and of that shape.

    A None in the shape fits any extent."""
    torch = torch_of(x)
    expect(torch is not None or isinstance(x, np.ndarray),
           f"{name} is a {type(x).__name__}; it must be a NumPy array or a PyTorch tensor")
    if torch is not None:
        expect(x.layout is torch.strided and x.device.type == "cpu",
               f"{name} is on {x.device} ({x.layout}); dense tensors on the CPU are taken")
        contiguous = x.is_contiguous()
    else:
        contiguous = x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative
    expect(contiguous, f"{name} is not contiguous (shape {tuple(x.shape)}); give {name}.contiguous(), or "
           f"numpy.ascontiguousarray({name})")
    allowed = tuple(NAMES.values()) if dtypes is None else dtypes
    expect(dtype_name(x) in allowed, f"{name} has dtype {x.dtype}; it must be one of "
           f"{', '.join(sorted({OUTSIDE[d] for d in allowed}))}")
    if shape is not None:
        fits = len(x.shape) == len(shape) and all(s is None or s == n for s, n in zip(shape, x.shape))
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        expect(fits, f"{name} has shape {tuple(x.shape)}; it must be ({wanted})")


def take(name: str, x: Any, dtypes: Optional[Sequence[str]] = None,
         shape: Optional[Sequence[Optional[int]]] = None) -> _native.Tensor:
    """A tensor over the memory of x, after check()."""
    check(name, x, dtypes, shape)
    dtype = str(dtype_name(x))
    torch = torch_of(x)
    if torch is not None:
        x = x.detach()
        if x.is_neg() or x.is_conj():
            x = x.clone()
        if dtype in PLAIN or x.dtype is torch.bool:
            x = x.view(getattr(torch, PLAIN.get(dtype, "uint8")))
    elif dtype in PLAIN or x.dtype == np.bool_:
        x = x.view(PLAIN.get(dtype, "uint8"))
    return _native.tensor(x, dtype)


def give(tensor: Optional[_native.Tensor], like: Any, dtype: Optional[str] = None) -> Any:
    """A tensor of the library as an array of the kind of `like`, over the same memory; `dtype` is its name
    outside, if it is not the tensor's ("bool")."""
    assert tensor is not None
    name = OUTSIDE[tensor.dtype] if dtype is None else dtype
    torch = torch_of(like)
    out: Any
    if torch is not None:
        out = tensor.torch()
        wanted = getattr(torch, name)
        return out if out.dtype is wanted else out.view(wanted)
    out = tensor.numpy()
    if name.startswith(("bfloat", "float8")):
        import ml_dtypes  # whoever gave such an array has it

        return out.view(getattr(ml_dtypes, name))
    return out if out.dtype == name else out.view(name)


def has_fp8(like: Any) -> bool:
    """Whether arrays of the kind of `like` can be e4m3: PyTorch from 2.1 on, NumPy with ml_dtypes."""
    torch = torch_of(like)
    if torch is not None:
        return hasattr(torch, "float8_e4m3fn")
    return importlib.util.find_spec("ml_dtypes") is not None


def zeros(shape: Sequence[int], dtype: str, like: Array) -> Any:
    """Zeros of the kind of `like`, which is any array; dtype is an outside name."""
    torch = torch_of(like)
    if torch is not None:
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    return np.zeros(shape, dtype=dtype)
