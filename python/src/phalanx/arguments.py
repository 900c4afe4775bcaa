"""What Buffer and ElasticBuffer take alike."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

from phalanx import _native
from phalanx.arrays import Array, check, dtype_name, expect, give, take
from phalanx.config import Config
from phalanx.errors import ArgumentError
from phalanx.group import Group

FLOATS = ("f64", "f32", "bf16", "f16")
WEIGHTS = ("f32", "f64")


def connect(group: Any, comm: Any = None, deadline: float = 0.0) -> Tuple[Group, bool]:
    """(group, whether it was made here) of what the caller gave as group or communicator."""
    if group is None and comm is None:
        raise ArgumentError("group and comm are None; one of them must be given")
    if isinstance(group, Group):
        return group, False
    return Group.of(comm if group is None else group, deadline=deadline), True


def unpack_payload(x: Any) -> Tuple[Array, Optional[Array]]:
    """(x, scales) of a tensor or of an FP8 tensor with its scales; scales may be None."""
    if not isinstance(x, (tuple, list)):
        check("x", x, shape=(None, None))
        return x, None
    expect(len(x) == 2, f"x has {len(x)} parts; it must be a tensor, or an FP8 tensor with its scales")
    check("x[0]", x[0], ("f8e4m3", "f8e5m2", "u8", "i8"), (None, None))
    check("x[1]", x[1], ("f32", "i32"), (x[0].shape[0], None))
    return x[0], x[1]


def request_of(x: Array, scales: Optional[Array]) -> _native.DispatchRequest:
    """A dispatch of these rows, whose options are still to be set."""
    request = _native.DispatchRequest()
    request.x = take("x", x)
    if scales is not None:
        request.scales = take("x[1]", scales)
    return request


def payload_of(rows: _native.Tensor, scales: Optional[_native.Tensor], x: Array,
               x_scales: Optional[Array]) -> Any:
    """The rows that came as the caller gave x: a tensor, or one with its scales."""
    if scales is None or x_scales is None:
        return give(rows, x)
    return give(rows, x), give(scales, x_scales)


def bias_list(bias: Any, rows: int, x: Array) -> List[_native.Tensor]:
    """The biases that the caller gave, none to two of them, as tensors."""
    given = () if bias is None else tuple(bias) if isinstance(bias, (tuple, list)) else (bias,)
    expect(len(given) <= 2, f"bias has {len(given)} parts; at most 2 are added")
    return [take("bias", b, (str(dtype_name(x)),), (rows, x.shape[1])) for b in given]


def check_config(config: Any) -> None:
    """ArgumentError unless it is a Config or None."""
    expect(config is None or isinstance(config, Config),
           f"config is a {type(config).__name__}; it must be a Config")


def aligned(count: int, alignment: int) -> int:
    """The least multiple of alignment that is at least count."""
    return (count + alignment - 1) // alignment * alignment
