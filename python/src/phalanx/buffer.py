"""DeepEP's first Buffer: dispatch and combine, one row for each (token, rank)."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple, Union

import numpy as np

from phalanx import _native
from phalanx.arguments import (FLOATS, WEIGHTS, aligned, bias_list, check_config, connect, payload_of,
                               request_of, unpack_payload)
from phalanx.arrays import Array, check, expect, give, integer, take, zeros
from phalanx.config import Config
from phalanx.errors import ArgumentError, Error, Unsupported
from phalanx.events import EventHandle, EventOverlap, ending, wait_for
from phalanx.low_latency import LowLatency

Rows = Union[Array, Tuple[Array, Array]]  # rows, or FP8 rows with their scales


class Handle(tuple):
    """What combine and a cached dispatch need of a dispatch; fits only the group and rank that made it.

    A tuple as DeepEP's within a node: (rank_prefix_matrix, None, None, None, is_token_in_rank, None). The
    None are of kernels that there are not here. rank_prefix_matrix [ranks, ranks] i32 has in column `rank`
    where the rows from each source rank end among those received; other columns, which only their ranks
    know, are -1.
    """

    __slots__ = ()


class _Handle(Handle):
    """A Handle with what stands behind it."""

    native: _native.Handle

    def __new__(cls, buffer: Buffer, native: _native.Handle, in_rank: Any) -> _Handle:
        matrix = zeros((buffer.group_size, buffer.group_size), "int32", in_rank)
        matrix -= 1
        ends = np.cumsum(native.from_ranks).tolist()
        for source, end in enumerate(ends):
            matrix[source, buffer.rank] = end
        self = super().__new__(cls, (matrix, None, None, None, in_rank, None))
        self.native = native
        return self


def native_of(handle: Any) -> _native.Handle:
    """What stands behind a handle that the caller gave."""
    if not isinstance(handle, _Handle):
        raise ArgumentError(f"handle is a {type(handle).__name__}; it must be what dispatch gave")
    return handle.native


class Buffer(LowLatency):
    """The ranks of a group, ready to dispatch and combine. Every rank makes the same calls in the same order.

    group: a phalanx.Group, or a torch.distributed ProcessGroup; comm: an mpi4py communicator instead of it.
    num_nvl_bytes, num_rdma_bytes: kept; nothing is staged on CPUs, so 0 will do.
    low_latency_mode: kept; low-latency calls need no mode here.
    num_qps_per_rank, allow_nvlink_for_low_latency_mode, allow_mnnvl: of networks that are not used; kept.
    explicitly_destroy: destroy() may be called.
    enable_shrink: ranks may be masked in low-latency calls.
    mask_after: seconds after which a low-latency call masks a rank that it waits for; 0: never.
    checked: dispatch also refuses tokens that name an expert twice, and weights that are NaN.

    Tensors are PyTorch's on the CPU or NumPy's, contiguous; results are of the kind of x, and share no memory
    with it. A call that raises ArgumentError has not communicated. CommError: a rank failed, died or is late.
    """

    num_sms = 20

    def __init__(self, group: Any, num_nvl_bytes: int = 0, num_rdma_bytes: int = 0,
                 low_latency_mode: bool = False, num_qps_per_rank: int = 24,
                 allow_nvlink_for_low_latency_mode: bool = True, allow_mnnvl: bool = False,
                 explicitly_destroy: bool = False, enable_shrink: bool = False, comm: Any = None, *,
                 checked: bool = False, mask_after: float = 0.0) -> None:
        expect(0 <= mask_after <= 86400, f"mask_after is {mask_after}; it must be 0 to 86400, a day")
        expect(enable_shrink or not mask_after, "mask_after needs enable_shrink")
        self._group, self._owned = connect(group, comm)
        self.group = group if group is not None else comm
        self.rank = self._group.rank()
        self.group_size = self._group.size()
        self.num_nvl_bytes = num_nvl_bytes
        self.num_rdma_bytes = num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.num_qps_per_rank = num_qps_per_rank
        self.allow_nvlink_for_low_latency_mode = allow_nvlink_for_low_latency_mode
        self.allow_mnnvl = allow_mnnvl
        self.explicitly_destroy = explicitly_destroy
        self.enable_shrink = enable_shrink
        self.checked = checked
        self.mask_after = mask_after
        self.runtime = self._group._native

    @staticmethod
    def is_sm90_compiled() -> bool:
        """False: there are no kernels here."""
        return False

    @classmethod
    def set_num_sms(cls, new_num_sms: int) -> None:
        """Sets what get_dispatch_config and get_combine_config put into num_sms; an even number."""
        expect(new_num_sms % 2 == 0, f"new_num_sms is {new_num_sms}; it must be even")
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """An event for all that was called before."""
        return EventOverlap(EventHandle())

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        """A Config; on CPUs it changes nothing."""
        expect(num_ranks > 0, f"num_ranks is {num_ranks}; it must be above 0")
        return Config(Buffer.num_sms)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """A Config; on CPUs it changes nothing."""
        return Buffer.get_dispatch_config(num_ranks)

    @staticmethod
    def get_low_latency_rdma_size_hint(num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int,
                                       num_experts: int) -> int:
        """Bytes that DeepEP's low-latency mode asks of num_rdma_bytes, in BF16."""
        del num_ranks
        tokens = integer("num_max_dispatch_tokens_per_rank", num_max_dispatch_tokens_per_rank)
        hidden, num_experts = integer("hidden", hidden), integer("num_experts", num_experts)
        scales = hidden // 128
        dispatch = 16 + max(2 * hidden, hidden + 4 * scales)
        combine = 2 * hidden + 4 * scales
        send = max(tokens * dispatch, num_experts * tokens * combine)
        recv = num_experts * tokens * max(dispatch, combine)
        return (2 * (send + recv + aligned(4 * num_experts, 128)) // 128 + 1) * 128

    def get_comm_stream(self) -> Any:
        """Unsupported: there are no streams on CPUs."""
        raise Unsupported("get_comm_stream: there are no streams on CPUs")

    def get_local_buffer_tensor(self, dtype: Any, size: Any = None, offset: int = 0,
                                use_rdma_buffer: bool = False) -> Any:
        """Unsupported: nothing is staged."""
        raise Unsupported("get_local_buffer_tensor: nothing is staged on CPUs, so there is no buffer to see")

    def get_dispatch_layout(self, topk_idx: Array, num_experts: int,
                            previous_event: Optional[EventOverlap] = None, async_finish: bool = False,
                            allocate_on_comm_stream: bool = False
                            ) -> Tuple[Any, None, Any, Any, EventOverlap]:
        """What dispatch wants to know of the experts that tokens choose. Communicates nothing.

        topk_idx: [tokens, k] i64, experts 0 ... num_experts - 1, -1 for none.
        num_experts: a multiple of the ranks; rank r has the r-th run of them.

        Returns (num_tokens_per_rank [ranks] i32, None, num_tokens_per_expert [num_experts] i32,
        is_token_in_rank [tokens, ranks] bool, event). Error: an expert that does not exist.
        """
        del allocate_on_comm_stream
        rank = self._rank()
        chosen = take("topk_idx", topk_idx, ("i64",), (None, None))
        wait_for("previous_event", previous_event, rank)
        per_rank, per_expert, in_rank = _native.layout(chosen, num_experts, self.group_size)
        return (give(per_rank, topk_idx), None, give(per_expert, topk_idx), give(in_rank, topk_idx, "bool"),
                ending(async_finish))

    def dispatch(self, x: Rows, handle: Optional[Handle] = None, num_tokens_per_rank: Optional[Array] = None,
                 num_tokens_per_rdma_rank: None = None, is_token_in_rank: Optional[Array] = None,
                 num_tokens_per_expert: Optional[Array] = None, topk_idx: Optional[Array] = None,
                 topk_weights: Optional[Array] = None, expert_alignment: int = 1, num_worst_tokens: int = 0,
                 config: Optional[Config] = None, previous_event: Optional[EventOverlap] = None,
                 async_finish: bool = False, allocate_on_comm_stream: bool = False
                 ) -> Tuple[Any, Any, Any, Optional[List[int]], Optional[Handle], EventOverlap]:
        """Sends every token once to each rank that has one of its experts.

        x: [tokens, hidden] of any dtype, or (FP8 or u8 [tokens, hidden], scales [tokens, n] f32 or i32).
        handle: of an earlier dispatch: the same rows go the same way, and only x is exchanged.
        num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert: of get_dispatch_layout; checked.
        topk_idx, topk_weights: [tokens, k] i64, and f32 or f64; either may be None.
        expert_alignment: counts by expert are rounded up to multiples of it.
        num_worst_tokens: if not 0, results have that many rows, at least the tokens of all ranks: behind
        those
            that came, topk_idx is -1, weights are 0 and recv_x is undefined.
        async_finish: returns when all but recv_x has come; recv_x is there, and x free again, when the event
            has been waited for.

        Returns (recv_x, recv_topk_idx, recv_topk_weights, num_recv_tokens_per_expert_list, handle, event),
        rows by source rank, then token. recv_topk_idx are local experts, -1 (and weight 0) for those
        elsewhere. The list is empty with num_worst_tokens. With `handle`: (recv_x, None, None, None, None,
        event).

        An expert that does not exist, or ranks that disagree, are the same Error on every rank.
        """
        del allocate_on_comm_stream
        rank = self._rank()
        check_config(config)
        expect(expert_alignment >= 1, f"expert_alignment is {expert_alignment}; it must be 1 or more")
        expect(num_worst_tokens >= 0, f"num_worst_tokens is {num_worst_tokens}; it must be 0 or more")
        expect(num_tokens_per_rdma_rank is None, "num_tokens_per_rdma_rank must be None: there is one node")
        payload, scales = unpack_payload(x)
        wait_for("previous_event", previous_event, rank)
        if handle is not None:
            expect(topk_idx is None and topk_weights is None,
                   "topk_idx and topk_weights must be None with a handle")
            expect(num_worst_tokens == 0, "num_worst_tokens must be 0 with a handle, which knows it")
            native = native_of(handle)
            expect(payload.shape[0] == native.tokens,
                   f"x has {payload.shape[0]} rows; the handle's had {native.tokens}")
            more = None if scales is None else take("x[1]", scales)
            rows, more, rest = _native.dispatch_again(rank, take("x", payload), more, native, async_finish)
            return (payload_of(rows, more, payload, scales), None, None, None, None,
                    ending(async_finish, rest))
        request = request_of(payload, scales)
        request.checked = self.checked
        request.expert_alignment = expert_alignment
        request.worst_rows = num_worst_tokens
        request.later = async_finish
        layout = (num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert)
        self._route(request, payload.shape[0], layout, topk_idx, topk_weights)
        got = _native.dispatch(rank, request)
        if topk_idx is None:
            counts = [aligned(n, expert_alignment) for n in self._counts(num_tokens_per_expert)]
        else:
            counts = np.diff(got.firsts).tolist()
        return (payload_of(got.x, got.scales, payload, scales),
                None if topk_idx is None else give(got.topk_idx, topk_idx),
                None if topk_weights is None else give(got.weights, topk_weights),
                [] if num_worst_tokens else counts,
                _Handle(self, got.handle, is_token_in_rank), ending(async_finish, got.rest))

    def combine(self, x: Array, handle: Handle, topk_weights: Optional[Array] = None,
                bias: Union[None, Array, Tuple[Array, Array]] = None, config: Optional[Config] = None,
                previous_event: Optional[EventOverlap] = None, async_finish: bool = False,
                allocate_on_comm_stream: bool = False, *, quantize: bool = False
                ) -> Tuple[Any, Any, EventOverlap]:
        """Sends rows back and sums, for every token, what its ranks made of it: no weights are applied.

        x: [received rows, hidden] f64, f32, bf16 or f16, in the order that dispatch gave.
        topk_weights: [received rows, k] f32 or f64; they travel back to the slots that they came from.
        bias: None, a tensor [tokens, hidden] of the dtype of x or a tuple of two, summed before the rows.
        quantize: rows travel in FP8 (e4m3) with f32 scales, and are summed in f32; not f64.
        async_finish: returns at once; the sums are there, and all arguments free again, when the event has
            been waited for.

        Returns (combined_x [tokens, hidden], combined_topk_weights [tokens, k] or None, event). Sums of
        f64 and f32 are made as they are, of bf16 and f16 in f32, rounded once, in the order of ranks.
        """
        del allocate_on_comm_stream
        rank = self._rank()
        check_config(config)
        native = native_of(handle)
        check("x", x, FLOATS, (None, None))
        expect(x.shape[0] >= native.rows, f"x has {x.shape[0]} rows; dispatch gave {native.rows}")
        request = _native.CombineRequest()
        request.quantize = quantize
        request.later = async_finish
        request.bias = bias_list(bias, native.tokens, x)
        if topk_weights is not None:
            request.weights = take("topk_weights", topk_weights, WEIGHTS, (x.shape[0], None))
        wait_for("previous_event", previous_event, rank)
        sums, back, rest = _native.combine(rank, take("x", x), native, request)
        return (give(sums, x), None if back is None else give(back, topk_weights),
                ending(async_finish, rest))

    def _route(self, request: _native.DispatchRequest, tokens: int, layout: Tuple[Any, Any, Any],
               topk_idx: Optional[Array], topk_weights: Optional[Array]) -> None:
        """Sets which experts the tokens choose, after a look at what get_dispatch_layout gave."""
        per_rank, in_rank, per_expert = layout
        for name, given in (("num_tokens_per_rank", per_rank), ("is_token_in_rank", in_rank),
                            ("num_tokens_per_expert", per_expert)):
            expect(given is not None, f"{name} is None; without a handle, give that of get_dispatch_layout")
        check("num_tokens_per_rank", per_rank, ("i32",), (self.group_size,))
        check("is_token_in_rank", in_rank, ("u8",), (tokens, self.group_size))
        check("num_tokens_per_expert", per_expert, ("i32",), (None,))
        experts = per_expert.shape[0]
        expect(experts % self.group_size == 0,
               f"num_tokens_per_expert has {experts} experts, which {self.group_size} ranks do not divide")
        if topk_idx is None:
            expect(topk_weights is None, "topk_weights needs topk_idx")
            ranks = np.arange(self.group_size, dtype=np.int64)
            chosen = np.where(np.asarray(in_rank).astype(bool), ranks, np.int64(-1))
            request.topk_idx = take("is_token_in_rank", np.ascontiguousarray(chosen))
            request.experts = self.group_size  # one a rank
            return
        request.topk_idx = take("topk_idx", topk_idx, ("i64",), (tokens, None))
        request.experts = experts
        if topk_weights is not None:
            request.weights = take("topk_weights", topk_weights, WEIGHTS, tuple(topk_idx.shape))
        try:
            right = _native.layout(request.topk_idx, experts, self.group_size)
        except Error:
            return  # dispatch says so on every rank
        for name, given, wanted in zip(("num_tokens_per_rank", "num_tokens_per_expert", "is_token_in_rank"),
                                       (per_rank, per_expert, in_rank), right):
            expect(np.array_equal(np.asarray(given), wanted.numpy()),
                   f"{name} does not fit topk_idx; give what get_dispatch_layout gave for it")

    def _counts(self, per_expert: Any) -> List[int]:
        """Rows for each expert of this rank, where only their senders know."""
        experts = per_expert.shape[0] // self.group_size
        mine = np.ascontiguousarray(np.asarray(per_expert), dtype=np.int64)
        everyone = self._rank().all_gather(take("num_tokens_per_expert", mine)).numpy()
        sums = everyone.reshape(self.group_size, -1).sum(axis=0)
        return sums[self.rank * experts:(self.rank + 1) * experts].tolist()
