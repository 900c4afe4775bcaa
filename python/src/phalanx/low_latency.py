"""DeepEP's low-latency mode: few tokens, slots of fixed size, and the receiving half when the hook is
called.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import numpy as np

from phalanx import _native
from phalanx.arrays import Array, check, dtype_name, expect, give, has_fp8, take, torch_of, zeros
from phalanx.connected import Connected
from phalanx.errors import ArgumentError, Unsupported
from phalanx.events import EventOverlap, ending

Hook = Optional[Callable[[], None]]


class LowLatencyHandle(tuple):
    """What low_latency_combine needs of a dispatch; fits only the group and rank that made it.

    A tuple as DeepEP's: (source [local experts, slots] i32, layout range [local experts, ranks] i64,
    tokens at most, hidden, experts). The range of a rank's rows is begin << 32 | count; source is which of
    its tokens.
    """

    native: _native.LowLatencyHandle


class LowLatency(Connected):
    """The low-latency half of Buffer."""

    group_size: int
    enable_shrink: bool
    mask_after: float

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int,
                                 num_experts: int) -> None:
        """Does nothing: other calls leave the low-latency buffers as they are."""
        del num_max_dispatch_tokens_per_rank, hidden, num_experts
        self._rank()

    def low_latency_dispatch(self, x: Array, topk_idx: Array, num_max_dispatch_tokens_per_rank: int,
                             num_experts: int, cumulative_local_expert_recv_stats: Optional[Array] = None,
                             dispatch_wait_recv_cost_stats: Optional[Array] = None, use_fp8: bool = True,
                             round_scale: bool = False, use_ue8m0: bool = False, async_finish: bool = False,
                             return_recv_hook: bool = False
                             ) -> Tuple[Any, Any, LowLatencyHandle, EventOverlap, Hook]:
        """Sends every token to each of its experts, into slots of fixed size.

        x: [tokens, hidden] bf16, f16, f32 or f64, at most num_max_dispatch_tokens_per_rank tokens.
        topk_idx: [tokens, k] i64, experts 0 ... num_experts - 1, -1 for none; an expert twice counts once.
        num_max_dispatch_tokens_per_rank, num_experts, hidden, dtype: the same on all ranks.
        cumulative_local_expert_recv_stats: [local experts] i32, which grows by the rows of each.
        dispatch_wait_recv_cost_stats: [ranks] i64, which grows by the nanoseconds that each rank was waited
        for when this one received (in turn: of several late ones, all but the first count only what they
        take longer).
        use_fp8: rows travel and come in e4m3 with a scale for every 128 elements (not for f64).
        round_scale: scales are powers of two. use_ue8m0: and packed, four to an i32; hidden a multiple of
        512. return_recv_hook: returns when all is sent; the hook that is returned receives. It must be
        called. async_finish: the same, and the rank receives by itself; the event ends when it has.

        Returns (recv_x, recv_count, handle, event, hook). recv_x is [local experts, slots, hidden], or
        that in e4m3 and its scales [local experts, slots, hidden / 128] f32 (UE8M0: hidden / 512, i32),
        slots being ranks times num_max_dispatch_tokens_per_rank. Of expert e, rows 0 ... recv_count[e] - 1
        count, by source rank, then token. They stay until the dispatch after next has been received; at
        most two may be uncombined.
        """
        rank = self._rank()
        check("x", x, ("bf16", "f16", "f32", "f64"), (None, None))
        expect(not (async_finish and return_recv_hook), "async_finish and return_recv_hook: one of them only")
        expect(not use_ue8m0 or (use_fp8 and round_scale), "use_ue8m0 needs use_fp8 and round_scale")
        expect(not round_scale or use_fp8, "round_scale needs use_fp8")
        expect(not use_ue8m0 or x.shape[1] % 512 == 0, f"use_ue8m0: hidden is {x.shape[1]}, not times 512")
        expect(not use_fp8 or dtype_name(x) != "f64", "use_fp8: rows of f64 are not quantised")
        if use_fp8 and not has_fp8(x):
            raise Unsupported("use_fp8: FP8 needs PyTorch 2.1, or for NumPy ml_dtypes; give use_fp8=False")
        experts = num_experts // self.group_size
        request = _native.LowLatencyRequest()
        request.x = take("x", x)
        request.topk_idx = take("topk_idx", topk_idx, ("i64",), (x.shape[0], None))
        request.sizes(num_experts, num_max_dispatch_tokens_per_rank, int(1000 * self.mask_after))
        if use_fp8:
            request.fp8(powers_of_two=round_scale, f32_scales=not use_ue8m0)
        if cumulative_local_expert_recv_stats is not None:
            request.stats = take("cumulative_local_expert_recv_stats", cumulative_local_expert_recv_stats,
                                 ("i32",), (experts,))
        if dispatch_wait_recv_cost_stats is not None:
            request.waited = self._waited("dispatch_wait_recv_cost_stats", dispatch_wait_recv_cost_stats)
        got = _native.low_latency_dispatch(rank, request)
        handle = LowLatencyHandle((give(got.handle.source, x), give(got.handle.range, x),
                                   num_max_dispatch_tokens_per_rank, x.shape[1], num_experts))
        handle.native = got.handle
        recv_x = give(got.x, x)
        if use_fp8:
            recv_x = (recv_x, self._scales(got.scales, x, use_ue8m0))
        event, hook = self._received(got.hook, async_finish, return_recv_hook)
        return recv_x, give(got.count, x), handle, event, hook

    def low_latency_combine(self, x: Array, topk_idx: Array, topk_weights: Array, handle: LowLatencyHandle,
                            use_logfmt: bool = False, zero_copy: bool = False, async_finish: bool = False,
                            return_recv_hook: bool = False, out: Optional[Array] = None,
                            combine_wait_recv_cost_stats: Optional[Array] = None
                            ) -> Tuple[Any, EventOverlap, Hook]:
        """Sums, for every token, what its experts made of it, times its weights, in the order of top-k.

        x: [local experts, slots, hidden] of the dtype that was dispatched;
        get_next_low_latency_combine_buffer gives memory that need not be copied (with or without zero_copy).
        topk_idx: [tokens, k] i64, as dispatched (or some of it); topk_weights: the same shape, f32 (f64
        for f64). out: [tokens, hidden], where the sums go; else they go to new memory.
        return_recv_hook: returns when all is sent; the hook that is returned receives. It must be called, and
        until then all arrays belong to the call. async_finish: the same, and the rank receives by itself;
        the event ends when it has. combine_wait_recv_cost_stats: as that of the dispatch.

        Returns (combined_x [tokens, hidden], event, hook).
        """
        rank = self._rank()
        expect(not (async_finish and return_recv_hook), "async_finish and return_recv_hook: one of them only")
        if use_logfmt:
            raise Unsupported("use_logfmt: rows go as they are")
        native = self._low_latency_native(handle)
        slots, hidden = handle[2] * self.group_size, handle[3]
        check("x", x, ("bf16", "f16", "f32", "f64"), (handle[4] // self.group_size, slots, hidden))
        check("topk_idx", topk_idx, ("i64",), (None, None))
        weights = ("f64",) if dtype_name(x) == "f64" else ("f32",)
        sums = zeros((topk_idx.shape[0], hidden), str(x.dtype).rpartition(".")[2], x) if out is None else out
        request = _native.LowLatencyCombineRequest()
        request.x = take("x", x)
        request.topk_idx = take("topk_idx", topk_idx)
        request.weights = take("topk_weights", topk_weights, weights, tuple(topk_idx.shape))
        request.out = take("out", sums, (str(dtype_name(x)),), (topk_idx.shape[0], hidden))
        if combine_wait_recv_cost_stats is not None:
            request.waited = self._waited("combine_wait_recv_cost_stats", combine_wait_recv_cost_stats)
        hook = _native.low_latency_combine(rank, request, native)
        del zero_copy
        return (sums, *self._received(hook, async_finish, return_recv_hook))

    def get_next_low_latency_combine_buffer(self, handle: LowLatencyHandle) -> Any:
        """[local experts, slots, hidden], of the dtype and kind that was dispatched, for the experts to
        write to after the dispatch has been received; low_latency_combine of it then copies nothing.
        """
        native = self._low_latency_native(handle)
        return give(_native.low_latency_combine_buffer(self._rank(), native), handle[0])

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Takes a rank for dead (mask) or no longer. Needs enable_shrink, and a low-latency dispatch
        before.
        """
        _native.update_mask(self._shrinking(), rank_to_mask, mask)

    def low_latency_query_mask_buffer(self, mask_status: Array) -> None:
        """Writes 1 for masked ranks and 0 for others to mask_status [ranks] i32."""
        rank = self._shrinking()
        check("mask_status", mask_status, ("i32",), (self.group_size,))
        mask_status[:] = give(_native.query_mask(rank), mask_status)

    def low_latency_clean_mask_buffer(self) -> None:
        """Takes no rank for dead any more."""
        _native.clean_mask(self._shrinking())

    def _waited(self, name: str, stats: Array) -> Any:
        return take(name, stats, ("i64",), (self.group_size,))

    def _shrinking(self) -> _native.Rank:
        expect(self.enable_shrink, "masks need a buffer with enable_shrink=True")
        return self._rank()

    @staticmethod
    def _low_latency_native(handle: Any) -> _native.LowLatencyHandle:
        if not isinstance(handle, LowLatencyHandle) or not hasattr(handle, "native"):
            raise ArgumentError(f"handle is a {type(handle).__name__}; it must be of low_latency_dispatch")
        return handle.native

    @staticmethod
    def _scales(scales: Any, x: Array, packed: bool) -> Any:
        """As the caller will see them, over the library's own memory."""
        out = give(scales, x)
        if not packed:
            return out
        torch = torch_of(x)
        return out.view(torch.int32) if torch is not None else out.view(np.int32)

    @staticmethod
    def _received(hook: _native.Hook, async_finish: bool, return_recv_hook: bool
                  ) -> Tuple[EventOverlap, Hook]:
        """The event and the hook of a call that has sent: it receives now unless either is asked for."""
        if return_recv_hook:
            return ending(False), hook
        if async_finish:
            return ending(True, hook.later()), None
        hook()
        return ending(False), None
