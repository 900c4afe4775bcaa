"""DeepEP's second buffer: compact rows, or expanded ones that are grouped by expert."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, NoReturn, Optional, Tuple, Union

import numpy as np

from phalanx import _native
from phalanx.arguments import (FLOATS, WEIGHTS, bias_list, connect, payload_of, request_of,
                               unpack_payload)
from phalanx.arrays import Array, check, expect, give, integer, take, torch_of
from phalanx.connected import Connected
from phalanx.errors import ArgumentError, Unsupported
from phalanx.events import EventHandle, EventOverlap, ending, wait_for

Rows = Union[Array, Tuple[Array, Array]]  # rows, or FP8 rows with their scales


@dataclasses.dataclass(eq=False)
class EPHandle:
    """What combine and a cached dispatch need of a dispatch; fits only the group and rank that made it.

    n received rows, K top-k, L local experts, R ranks. Arrays are of the kind of topk_idx, i32.
    """

    do_expand: bool
    num_experts: int
    expert_alignment: int
    num_max_tokens_per_rank: int
    num_sms: int
    topk_idx: Any  # [tokens, K] i64, as given (a copy with do_handle_copy)
    num_recv_tokens: int  # n
    num_expanded_tokens: int  # rows of the expanded form
    num_recv_tokens_per_expert_list: List[int]  # [L], rounded up to the alignment
    psum_num_recv_tokens_per_scaleup_rank: Any  # [R]: rows from this rank and those before
    psum_num_recv_tokens_per_expert: Any  # [L]: compact: inclusive; expanded: where its rows end
    num_unaligned_recv_tokens_per_expert: Any  # [L] with do_expand, else None
    recv_src_metadata: Any  # [n, K + 2]: source rank · max + token, row, and by slot the expanded row or -1
    dst_buffer_slot_idx: Optional[Any] = None  # of DeepEP's kernels
    token_metadata_at_forward: Optional[Any] = None  # of DeepEP's kernels
    channel_linked_list: Optional[Any] = None  # of DeepEP's kernels
    native: Any = None
    recv_topk_idx: Optional[Any] = None  # compact: what a cached dispatch gives again


def _expanded_rows(idx: np.ndarray, firsts: List[int]) -> np.ndarray:
    """[n, K]: the expanded row of each slot of the compact rows, -1 where the expert is elsewhere."""
    out = np.full(idx.size, -1, np.int64)
    flat = idx.reshape(-1)
    for expert, first in enumerate(firsts[:-1]):
        at = np.nonzero(flat == expert)[0]
        out[at] = first + np.arange(len(at))
    return out.reshape(idx.shape)


def _column_major(scales: Any) -> Any:
    """The same values, with neighbours along the rows."""
    if torch_of(scales) is not None:
        return scales.t().contiguous().t()
    return np.asfortranarray(scales)


class ElasticBuffer(Connected):
    """The ranks of a group, ready to dispatch and combine. Every rank makes the same calls in the same order.

    group: a phalanx.Group, a torch.distributed ProcessGroup or an mpi4py communicator.
    num_max_tokens_per_rank: what dispatch takes for its argument of that name, if that is not given.
    num_cpu_timeout_secs: seconds without progress after which waiting ranks raise CommError, where the ranks
        are joined here (a phalanx.Group has its own deadline).
    explicitly_destroy: destroy() may be called.
    checked: dispatch also refuses tokens that name an expert twice, and weights that are NaN.

    The others size and tune DeepEP's memory and kernels; they are kept, and change nothing on CPUs: results
    are always deterministic. There is one scaleout rank; all others are scaleup ranks.
    """

    def __init__(self, group: Any, num_bytes: Optional[int] = None, num_cpu_bytes: int = 0,
                 num_max_tokens_per_rank: int = 0, hidden: int = 0, num_topk: int = 0,
                 use_fp8_dispatch: bool = False, deterministic: bool = False, allow_hybrid_mode: bool = True,
                 allow_multiple_reduction: bool = True, prefer_overlap_with_compute: bool = True,
                 sl_idx: int = 3, num_allocated_qps: int = 0, num_cpu_timeout_secs: float = 300,
                 num_gpu_timeout_secs: float = 100, explicitly_destroy: bool = False, *,
                 checked: bool = False) -> None:
        self._group, self._owned = connect(group, deadline=num_cpu_timeout_secs)
        self.group = group
        self.rank_idx = self.scaleup_rank_idx = self._group.rank()
        self.num_ranks = self.num_scaleup_ranks = self.num_nvlink_ranks = self._group.size()
        self.scaleout_rank_idx = 0
        self.num_scaleout_ranks = self.num_rdma_ranks = 1
        self.num_bytes = 0 if num_bytes is None else num_bytes
        self.num_cpu_bytes = num_cpu_bytes
        self.num_max_tokens_per_rank = num_max_tokens_per_rank
        self.hidden, self.num_topk, self.use_fp8_dispatch = hidden, num_topk, use_fp8_dispatch
        self.deterministic = deterministic
        self.allow_hybrid_mode = allow_hybrid_mode
        self.allow_multiple_reduction = allow_multiple_reduction
        self.prefer_overlap_with_compute = prefer_overlap_with_compute
        self.sl_idx, self.num_allocated_qps = sl_idx, num_allocated_qps
        self.num_gpu_timeout_secs = num_gpu_timeout_secs
        self.explicitly_destroy = explicitly_destroy
        self.checked = checked
        self.runtime = self._group._native

    @staticmethod
    def get_buffer_size_hint(group: Any, num_max_tokens_per_rank: int, hidden: int, num_topk: int = 0,
                             use_fp8_dispatch: bool = False, allow_hybrid_mode: bool = True,
                             allow_multiple_reduction: bool = True) -> int:
        """Bytes of num_bytes that a buffer needs: 0 on CPUs, where nothing is staged."""
        del group, num_max_tokens_per_rank, hidden, num_topk, use_fp8_dispatch
        del allow_hybrid_mode, allow_multiple_reduction
        return 0

    @staticmethod
    def capture() -> EventHandle:
        """An event for all that was called before."""
        return EventHandle()

    def barrier(self, use_comm_stream: bool = True, with_cpu_sync: bool = False,
                sequential: bool = True) -> None:
        """Returns when every rank has called it."""
        del use_comm_stream, with_cpu_sync, sequential
        self._rank().barrier()

    def get_physical_domain_size(self) -> Tuple[int, int]:
        """(RDMA ranks, NVLink ranks): one, and all."""
        return self.num_rdma_ranks, self.num_nvlink_ranks

    def get_logical_domain_size(self) -> Tuple[int, int]:
        """(scaleout ranks, scaleup ranks): one, and all."""
        return self.num_scaleout_ranks, self.num_scaleup_ranks

    def get_theoretical_num_sms(self, num_experts: int, num_topk: int, num_scaleout_topk: int = 0,
                                rdma_gbs: float = 0, nvlink_gbs: float = 0, sm_read_gbs: float = 200,
                                sm_write_gbs: float = 50) -> int:
        """0: there are no SMs."""
        del num_experts, num_topk, num_scaleout_topk, rdma_gbs, nvlink_gbs, sm_read_gbs, sm_write_gbs
        return 0

    def get_theoretical_num_qps(self, num_sms: int) -> int:
        """0: there are no QPs."""
        del num_sms
        return 0

    def __getattr__(self, name: str) -> NoReturn:
        if name == "get_comm_stream" or name.startswith(("engram_", "pp_", "agrs_", "all_gather")):
            raise Unsupported(f"{name}: an ElasticBuffer on CPUs dispatches and combines only")
        raise AttributeError(name)

    def dispatch(self, x: Rows, topk_idx: Optional[Array] = None, topk_weights: Optional[Array] = None,
                 cumulative_local_expert_recv_stats: Optional[Array] = None,
                 num_experts: Optional[int] = None, num_max_tokens_per_rank: Optional[int] = None,
                 expert_alignment: Optional[int] = None, num_sms: int = 0, num_qps: int = 0,
                 previous_event: Any = None,
                 previous_event_before_epilogue: Any = None, async_with_compute_stream: bool = False,
                 allocate_on_comm_stream: bool = False, handle: Optional[EPHandle] = None,
                 do_handle_copy: bool = True, do_cpu_sync: Optional[bool] = None, do_expand: bool = False,
                 do_zero_padding: bool = False, use_tma_aligned_col_major_sf: bool = False
                 ) -> Tuple[Any, Any, Any, EPHandle, EventOverlap]:
        """Sends tokens to the ranks that have their experts.

        x: [tokens, hidden] of any dtype, or (FP8 or u8 [tokens, hidden], scales [tokens, n] f32 or i32).
        topk_idx: [tokens, k] i64, experts 0 ... num_experts - 1, -1 for none; None with a handle.
        topk_weights: [tokens, k] f32 or f64, or None.
        cumulative_local_expert_recv_stats: [local experts] i32, which grows by the rows of each.
        num_max_tokens_per_rank: the same on all ranks, at least their tokens; the buffer's if None.
        expert_alignment: each expert's rows take a multiple of it (1 if None).
        handle: of an earlier dispatch: the same rows go the same way.
        do_cpu_sync: False gives compact results room for all ranks' num_max_tokens_per_rank; behind the rows
            that came, topk_idx is -1, weights are 0 and recv_x is undefined. None is True without a handle.
        do_expand: a row for each (token, expert), by expert, instead of one for each (token, rank). Rows
        between
            experts are 0, with or without do_zero_padding.
        use_tma_aligned_col_major_sf: received scales are column-major.
        async_with_compute_stream: returns when all but recv_x has come; recv_x is there, and x free again,
        when
            the event has been waited for.

        Returns (recv_x, recv_topk_idx, recv_topk_weights, handle, event): topk_idx None when expanded,
        weights [rows] then, None where none were given. An expert that does not exist, or ranks that
        disagree, are the same Error on every rank.
        """
        del num_sms, num_qps, allocate_on_comm_stream
        expect(do_expand or not do_zero_padding, "do_zero_padding needs do_expand")
        payload, scales = unpack_payload(x)
        rank = self._rank()
        wait_for("previous_event", previous_event, rank)
        wait_for("previous_event_before_epilogue", previous_event_before_epilogue, rank)
        if cumulative_local_expert_recv_stats is not None:
            experts = handle.num_experts if isinstance(handle, EPHandle) else num_experts or 0
            check("cumulative_local_expert_recv_stats", cumulative_local_expert_recv_stats, ("i32",),
                  (experts // self.num_ranks,))
        if handle is not None:
            expect(topk_idx is None, "topk_idx must be None with a handle")
            expect(not do_cpu_sync, "do_cpu_sync must be None or False with a handle")
            same = (num_experts, expert_alignment, num_max_tokens_per_rank)
            self._check_same(handle, do_expand, same)
            got = self._again(payload, scales, topk_weights, handle, async_with_compute_stream)
        else:
            got = self._first(payload, scales, topk_idx, topk_weights,
                              {"num_experts": num_experts, "expert_alignment": expert_alignment or 1,
                               "most": num_max_tokens_per_rank, "expand": do_expand,
                               "sync": do_cpu_sync is None or do_cpu_sync, "copy": do_handle_copy,
                               "later": async_with_compute_stream})
        recv_x, idx, weights, handle, rest = got
        self._count(cumulative_local_expert_recv_stats, handle)
        if use_tma_aligned_col_major_sf and scales is not None:
            if rest is not None:
                rest.wait()
            recv_x = (recv_x[0], _column_major(recv_x[1]))
        return recv_x, idx, weights, handle, ending(async_with_compute_stream, rest)

    def combine(self, x: Array, handle: EPHandle, topk_weights: Optional[Array] = None,
                bias: Union[None, Array, Tuple[Array, Array]] = None, num_sms: int = 0, num_qps: int = 0,
                previous_event: Any = None, previous_event_before_epilogue: Any = None,
                async_with_compute_stream: bool = False, allocate_on_comm_stream: bool = False
                ) -> Tuple[Any, Any, EventOverlap]:
        """Sends rows back and sums, for every token, what its ranks made of it: no weights are applied.

        x: [rows, hidden] f64, f32, bf16 or f16, as dispatch gave them, compact or expanded.
        topk_weights: [rows, k], expanded: [rows], f32 or f64; they travel back to the slots they came from.
        bias: None, a tensor [tokens, hidden] of the dtype of x or a tuple of two, summed before the rows.
        async_with_compute_stream: returns at once; the sums are there, and all arguments free again, when
        the
            event has been waited for.

        Returns (combined_x [tokens, hidden], combined_topk_weights [tokens, k] or None, event). Expanded
        rows of a token are first summed inside their rank in the order of top-k, rounded once, then over
        ranks in the order of the last of their slots, as compact rows are.
        """
        del num_sms, num_qps, allocate_on_comm_stream
        rank = self._rank()
        native = self._native_of(handle)
        if handle.do_expand and not self.allow_multiple_reduction:
            raise Unsupported("allow_multiple_reduction=False: expanded rows are summed in their rank first")
        check("x", x, FLOATS, (None, None))
        expect(x.shape[0] >= native.rows, f"x has {x.shape[0]} rows; dispatch gave {native.rows}")
        request = _native.CombineRequest()
        request.bias = bias_list(bias, native.tokens, x)
        request.later = async_with_compute_stream
        if topk_weights is not None:
            shape = (x.shape[0],) if handle.do_expand else (x.shape[0], None)
            request.weights = take("topk_weights", topk_weights, WEIGHTS, shape)
        wait_for("previous_event", previous_event, rank)
        wait_for("previous_event_before_epilogue", previous_event_before_epilogue, rank)
        sums, back, rest = _native.combine(rank, take("x", x), native, request)
        return (give(sums, x), None if back is None else give(back, topk_weights),
                ending(async_with_compute_stream, rest))

    @staticmethod
    def _native_of(handle: Any) -> _native.Handle:
        if not isinstance(handle, EPHandle) or handle.native is None:
            raise ArgumentError(f"handle is a {type(handle).__name__}; it must be what dispatch gave")
        return handle.native

    def _check_same(self, handle: EPHandle, expand: bool, given: Tuple[Any, Any, Any]) -> None:
        self._native_of(handle)
        expect(handle.do_expand == expand, f"do_expand is {expand}; the handle's had {handle.do_expand}")
        for name, value in zip(("num_experts", "expert_alignment", "num_max_tokens_per_rank"), given):
            held = getattr(handle, name)
            expect(value is None or value == held, f"{name} is {value}; the handle's dispatch had {held}")

    def _first(self, x: Array, scales: Optional[Array], topk_idx: Any, topk_weights: Optional[Array],
               options: Dict[str, Any]) -> Tuple[Any, Any, Any, EPHandle, Optional[_native.Event]]:
        """A dispatch that finds its layout."""
        rank = self._rank()
        experts, alignment, most = options["num_experts"], options["expert_alignment"], options["most"]
        most = self.num_max_tokens_per_rank if most is None else most
        expect(topk_idx is not None, "topk_idx is None; it may be so with a handle only")
        expect(experts is not None, "num_experts is None; it may be so with a handle only")
        expect(alignment >= 1, f"expert_alignment is {alignment}; it must be 1 or more")
        of_i32 = ((1 << 31) - 1) // self.num_ranks  # of the handle's metadata
        most = integer("num_max_tokens_per_rank", most, most=of_i32)
        expect(most >= x.shape[0], f"num_max_tokens_per_rank is {most}; x has {x.shape[0]} tokens")
        request = request_of(x, scales)
        request.topk_idx = take("topk_idx", topk_idx, ("i64",), (x.shape[0], None))
        if topk_weights is not None:
            request.weights = take("topk_weights", topk_weights, WEIGHTS, tuple(topk_idx.shape))
        request.experts, request.expert_alignment = experts, alignment
        request.checked, request.expand = self.checked, options["expand"]
        request.by_slot = request.sources = True
        request.later = options["later"]
        if not options["sync"] and not options["expand"]:
            request.worst_rows = most * self.num_ranks
        got = _native.dispatch(rank, request)
        kept = topk_idx
        if options["copy"]:
            kept = topk_idx.clone() if torch_of(topk_idx) is not None else topk_idx.copy()
        handle = self._handle(got, kept, most, request)
        weights = None if topk_weights is None else give(got.weights, topk_weights)
        return payload_of(got.x, got.scales, x, scales), handle.recv_topk_idx, weights, handle, got.rest

    def _handle(self, got: _native.Received, topk_idx: Array, most: int,
                request: _native.DispatchRequest) -> EPHandle:
        native, expand = got.handle, request.expand
        n = native.received
        compact: Any = native.topk_idx if expand else got.topk_idx
        found: Any = got.sources
        idx = compact.numpy()[:n]
        sources = found.numpy()[:n]
        metadata = np.full((n, topk_idx.shape[1] + 2), -1, np.int32)
        metadata[:, 0] = sources[:, 0] * most + sources[:, 1]
        metadata[:, 1] = np.arange(n)
        if expand:
            metadata[:, 2:] = _expanded_rows(idx, got.firsts)
        counts, firsts = np.array(got.counts, np.int64), np.array(got.firsts, np.int64)

        def of_kind(values: Any) -> Any:
            return give(take("handle", np.ascontiguousarray(values, np.int32)), topk_idx)

        return EPHandle(
            expand, request.experts, request.expert_alignment, most, 0, topk_idx, n, int(firsts[-1]),
            np.diff(firsts).tolist(), of_kind(np.cumsum(native.from_ranks)),
            of_kind(firsts[:-1] + counts if expand else firsts[1:]), of_kind(counts) if expand else None,
            of_kind(metadata), native=native, recv_topk_idx=None if expand else give(got.topk_idx, topk_idx))

    def _again(self, x: Array, scales: Optional[Array], topk_weights: Optional[Array],
               handle: EPHandle, later: bool
               ) -> Tuple[Any, Any, Any, EPHandle, Optional[_native.Event]]:
        """A cached dispatch. Weights are rows of K numbers to it, of which those of other ranks are not
        wanted.
        """
        rank, native = self._rank(), handle.native
        expect(x.shape[0] == native.tokens, f"x has {x.shape[0]} rows; the handle's had {native.tokens}")
        more = None if scales is None else take("x[1]", scales)
        weights = None
        if topk_weights is not None:
            check("topk_weights", topk_weights, WEIGHTS, tuple(handle.topk_idx.shape))
            weights = self._weights_again(topk_weights, handle)
        rows, more, rest = _native.dispatch_again(rank, take("x", x), more, native, later)
        return payload_of(rows, more, x, scales), handle.recv_topk_idx, weights, handle, rest

    def _weights_again(self, topk_weights: Array, handle: EPHandle) -> Any:
        given = take("topk_weights", topk_weights)
        moved, _, _ = _native.dispatch_again(self._rank(), given, None, handle.native, False)
        rows = moved.numpy()
        if not handle.do_expand:
            out = np.where(np.asarray(handle.recv_topk_idx) >= 0, rows, rows.dtype.type(0))
        else:
            out = np.zeros(rows.shape[0], rows.dtype)
            slots = np.asarray(handle.recv_src_metadata)[:, 2:]
            row, slot = np.nonzero(slots >= 0)
            out[slots[row, slot]] = rows[slots[row, slot], slot]
        return give(take("topk_weights", np.ascontiguousarray(out)), topk_weights)

    def _count(self, stats: Any, handle: EPHandle) -> None:
        if stats is None:
            return
        if handle.do_expand:
            stats += handle.num_unaligned_recv_tokens_per_expert
            return
        idx = np.asarray(handle.recv_topk_idx)
        counts = np.bincount(idx[idx >= 0], minlength=stats.shape[0]).astype(np.int32)
        stats += give(take("stats", counts), stats)
