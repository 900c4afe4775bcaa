"""Placement of experts: DeepSeek's EPLB, and a solver that does better."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from phalanx import _native
from phalanx.arrays import Array, check, expect, give, take, torch_of
from phalanx.errors import ArgumentError

POLICIES = ("eplb", "best")


def _as_float32(weight: Any) -> Any:
    torch = torch_of(weight)
    if torch is not None:
        return weight.detach().to(device="cpu", dtype=torch.float32).contiguous()
    return np.ascontiguousarray(weight, dtype=np.float32)


def rebalance_experts(weight: Array, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int, *,
                      policy: str = "eplb", previous: Optional[Array] = None,
                      max_moves: Optional[int] = None) -> Tuple[Any, Any, Any]:
    """How many replicas each expert has, and on which GPU each lies.

    weight: [layers, experts], any real dtype: the load of every expert. A NumPy array or a PyTorch tensor.
    num_replicas: physical experts, a multiple of num_gpus; those of GPU g are the g-th run of equal length.
    num_groups: groups of experts (equal runs), which stay on one node each if num_nodes divides their number.
    policy: "eplb" is DeepSeek's algorithm, slot by slot; "best" decides replication and packing together,
    and is
        never worse where no GPU may hold an expert twice.
    previous: [layers, num_replicas] i64, the physical_to_logical_map in use ("best" only).
    max_moves: the most (layer, GPU, expert) pairs that are new against `previous`; None is no limit.

    Returns (physical_to_logical_map [layers, num_replicas], logical_to_physical_map [layers, experts, most
    replicas] with -1 behind the last, expert_count [layers, experts]), i64, of the kind of `weight`.

    Error: sizes that do not fit together, or loads that are negative, NaN or infinite.
    """
    expect(policy in POLICIES, f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
    expect(torch_of(weight) is not None or isinstance(weight, np.ndarray),
           f"weight is a {type(weight).__name__}; it must be a NumPy array or a PyTorch tensor")
    expect(len(weight.shape) == 2, f"weight has shape {tuple(weight.shape)}; it must be (layers, experts)")
    expect("complex" not in str(weight.dtype), f"weight has dtype {weight.dtype}; it must be a real one")
    if policy != "best" and (previous is not None or max_moves is not None):
        raise ArgumentError("previous and max_moves need policy='best'")
    if max_moves is not None and previous is None:
        raise ArgumentError("max_moves needs previous, the placement in use")
    layers, experts = weight.shape
    request = _native.BalanceRequest()
    request.sizes = (layers, experts, num_replicas, num_groups, num_nodes, num_gpus)
    request.best = policy == "best"
    if max_moves is not None:
        expect(max_moves >= 0, f"max_moves is {max_moves}; it must be 0 or more")
        request.max_moves = max_moves
    before = None
    if previous is not None:
        check("previous", previous, ("i64",), (layers, num_replicas))
        before = take("previous", previous)
    loads = take("weight", _as_float32(weight))
    slots, where, count = _native.rebalance(loads, request, before)
    return give(slots, weight), give(where, weight), give(count, weight)
