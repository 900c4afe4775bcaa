"""Arguments damaged at random, of every call: an exception of phalanx, TypeError or ValueError at most; the
process lives, and what is right works after it."""

import inspect

import numpy as np

import phalanx
import phalanx.deep_ep as deep_ep
from phalanx.buffer import Handle
from phalanx.eplb import rebalance_experts
from phalanx.low_latency import LowLatencyHandle

T, H, K, E, MOST = 5, 8, 2, 4, 8
ALLOWED = (phalanx.Error, TypeError, ValueError)
HUGE = [1 << 62, (1 << 63) - 1, 1 << 63, 1 << 200, -1, -(1 << 63), -(1 << 200)]
# None that memory might just have room for.
JUNK = [None, "text", b"bytes", "", [], [1, 2], [[1.0]], (), (1,), (None, None), {}, {"x": 1}, object(),
        print, 3.5, float("nan"), float("inf"), True, 0, 1, 2, 3, np.int64(3), np.float32(2), np.zeros(()),
        np.zeros((2, 3)), np.zeros((0, 0)), np.zeros((1,) * 7), np.array(["a"]), np.array([None]),
        Handle(()), LowLatencyHandle((0, 0, 8, 8, 4)), phalanx.deep_ep.Config(20), *HUGE]


class Fuzzer:
    """Calls with damaged arguments, and the objects of those that worked."""

    def __init__(self, rng):
        self.rng = rng
        self.handles = []
        self.last = {}  # what was given

    def pick(self, things):
        return things[int(self.rng.integers(len(things)))]

    def damaged_array(self, x):
        dtypes = ("f2", "f4", ">f4", "f8", "c8", "i1", "i4", "i8", "u8", "?", "O", "U3", "M8[s]", "V4")
        read_only = x.copy()
        read_only.setflags(write=False)
        unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
        extreme = x.copy()
        if x.size and x.dtype.kind in "if":
            values = [0, -1, -2, 7, np.iinfo(np.int64).min] if x.dtype.kind == "i" else [np.nan, np.inf, 0]
            extreme.flat[self.rng.integers(x.size)] = np.array(self.pick(values)).astype(x.dtype)
        return self.pick([
            np.zeros(x.shape, self.pick(dtypes)), x.reshape(-1), x[:-1], x[..., :-1], x[::-1], x[..., ::2],
            x[None], x[:0], x[..., :0], x.T, np.asfortranarray(x), np.broadcast_to(x[:1], x.shape), read_only,
            unaligned, extreme, np.concatenate([x, x]), np.ma.masked_array(x), x.tolist(), memoryview(x)])

    def damaged(self, value):
        if self.handles and self.rng.integers(5) == 0:
            return self.pick(self.handles)
        if isinstance(value, np.ndarray) and value.ndim and self.rng.integers(3):
            return self.damaged_array(value)
        if isinstance(value, tuple) and self.rng.integers(2):
            return self.pick([value[:-1], value + value, list(value), tuple(map(self.damaged, value))])
        return self.pick(JUNK)

    def attempt(self, call, arguments):
        """What the call gives for the arguments, of which one or two are damaged; None if it refuses."""
        names = [n for n in inspect.signature(call).parameters if n not in ("return_recv_hook", "comm")]
        arguments = dict(arguments)
        for name in self.rng.choice(names, size=min(len(names), int(self.rng.integers(1, 3))), replace=False):
            arguments[str(name)] = self.damaged(arguments.get(str(name)))
        self.last = arguments
        try:
            return call(**arguments)
        except phalanx.BrokenPromise as e:
            raise AssertionError(f"{call.__name__}({arguments}): {e}") from e
        except ALLOWED:
            return None
        except Exception as e:
            raise AssertionError(f"{call.__name__}({arguments}): {type(e).__name__}: {e}") from e


def some_arrays(rng):
    """(x, topk_idx, topk_weights): every token chooses one expert."""
    return (rng.integers(-8, 9, (T, H)).astype(np.float32), np.array([[t % E, -1] for t in range(T)]),
            np.ones((T, K), np.float32))


def fuzz_buffer(fuzzer, group):
    """The calls of a Buffer, then a round that is right."""
    buffer = deep_ep.Buffer(group)
    fuzzer.attempt(deep_ep.Buffer, {"group": group})
    x, idx, weights = some_arrays(fuzzer.rng)
    asked = {"topk_idx": idx, "num_experts": E}
    fuzzer.attempt(buffer.get_dispatch_layout, asked)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(**asked)
    tokens = {"x": x, "num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
              "num_tokens_per_expert": per_expert, "topk_idx": idx, "topk_weights": weights}
    got = fuzzer.attempt(buffer.dispatch, tokens)
    if got is not None and got[4] is not None:
        fuzzer.handles.append(got[4])
        fuzzer.attempt(buffer.combine, {"x": got[0], "handle": got[4]})
    fuzzer.attempt(buffer.dispatch, {**tokens, "x": (x.astype(np.uint8), x[:, :2].copy())})
    recv_x, _, recv_weights, _, handle, _ = buffer.dispatch(**tokens)
    fuzzer.handles.append(handle)
    fuzzer.attempt(buffer.dispatch, {"x": x, "handle": handle})
    back = {"x": recv_x, "handle": handle, "topk_weights": recv_weights, "bias": (x, x)}
    fuzzer.attempt(buffer.combine, back)
    assert (buffer.combine(**back)[0] == 3 * x).all()


def fuzz_elastic(fuzzer, group):
    """The calls of an ElasticBuffer, then a round that is right."""
    buffer = deep_ep.ElasticBuffer(group)
    fuzzer.attempt(deep_ep.ElasticBuffer, {"group": group})
    x, idx, weights = some_arrays(fuzzer.rng)
    tokens = {"x": x, "topk_idx": idx, "topk_weights": weights, "num_experts": E,
              "num_max_tokens_per_rank": MOST, "do_expand": bool(fuzzer.rng.integers(2)),
              "cumulative_local_expert_recv_stats": np.zeros(E, np.int32)}
    got = fuzzer.attempt(buffer.dispatch, tokens)
    if got is not None:
        fuzzer.handles.append(got[3])
    recv_x, _, recv_weights, handle, _ = buffer.dispatch(**tokens)
    fuzzer.handles.append(handle)
    fuzzer.attempt(buffer.dispatch, {"x": x, "topk_weights": weights, "handle": handle,
                                     "do_expand": tokens["do_expand"]})
    back = {"x": recv_x, "handle": handle, "topk_weights": recv_weights, "bias": x}
    fuzzer.attempt(buffer.combine, back)
    assert (buffer.combine(**back)[0] == 2 * x).all()


def fuzz_low_latency(fuzzer, group):
    """The low-latency calls of a Buffer, and a round that is right. Two results may live, so all are
    combined.
    """
    buffer = deep_ep.Buffer(group, enable_shrink=True)
    x, idx, weights = some_arrays(fuzzer.rng)
    tokens = {"x": x, "topk_idx": idx, "num_max_dispatch_tokens_per_rank": MOST, "num_experts": E,
              "use_fp8": False}
    got = fuzzer.attempt(buffer.low_latency_dispatch, tokens)
    if got is not None:
        fuzzer.handles.append(got[2])
        rows, chosen = buffer.get_next_low_latency_combine_buffer(got[2]), fuzzer.last["topk_idx"]
        wide = np.float64 if rows.dtype == np.float64 else np.float32
        buffer.low_latency_combine(rows, chosen, np.ones(chosen.shape, wide), got[2])
    recv_x, _, handle, _, _ = buffer.low_latency_dispatch(**tokens)
    fuzzer.attempt(buffer.get_next_low_latency_combine_buffer, {"handle": handle})
    back = {"x": recv_x, "topk_idx": idx, "topk_weights": weights, "handle": handle}
    if fuzzer.attempt(buffer.low_latency_combine, back) is None:
        assert (buffer.low_latency_combine(**back)[0] == x).all()
    fuzzer.handles.append(handle)
    fuzzer.attempt(buffer.low_latency_query_mask_buffer, {"mask_status": np.zeros(1, np.int32)})
    fuzzer.attempt(buffer.low_latency_update_mask_buffer, {"rank_to_mask": 0, "mask": True})
    fuzzer.attempt(buffer.clean_low_latency_buffer, {"num_experts": E})


def fuzz_others(fuzzer, group):
    """What needs no ranks, and a buffer that was destroyed."""
    fuzzer.attempt(deep_ep.Buffer.set_num_sms, {})
    deep_ep.Buffer.set_num_sms(20)
    fuzzer.attempt(deep_ep.Buffer.get_dispatch_config, {})
    fuzzer.attempt(deep_ep.Buffer.get_low_latency_rdma_size_hint, dict(
        num_max_dispatch_tokens_per_rank=MOST, hidden=H, num_ranks=1, num_experts=E))
    load = fuzzer.rng.random((3, E)).astype(np.float32)
    sizes = {"weight": load, "num_replicas": 8, "num_groups": 2, "num_nodes": 1, "num_gpus": 2}
    fuzzer.attempt(rebalance_experts, sizes)
    placed = rebalance_experts(**sizes)[0]
    fuzzer.attempt(rebalance_experts, {**sizes, "policy": "best", "previous": placed, "max_moves": 2})
    gone = deep_ep.Buffer(group, explicitly_destroy=True)
    gone.destroy()
    fuzzer.attempt(gone.get_dispatch_layout, {"topk_idx": np.zeros((1, 1), np.int64), "num_experts": E})
    fuzzer.attempt(gone.low_latency_update_mask_buffer, {})


def test_damaged_arguments(rng):
    fuzzer = Fuzzer(rng)  # handles go from world to world

    def rank(group):
        for _ in range(12):
            for fuzz in (fuzz_buffer, fuzz_elastic, fuzz_low_latency, fuzz_others):
                fuzz(fuzzer, group)

    for _ in range(6):
        phalanx.run_threads(1, rank)
