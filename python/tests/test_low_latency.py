"""The low-latency mode against a slow account, on threads."""

import time

import kinds
import numpy as np
import pytest
from worlds import Case, difference

import phalanx
import phalanx.deep_ep as deep_ep

every_kind = pytest.mark.parametrize("kind, dtype", kinds.EVERY, ids=kinds.IDS)
MOST = 24


def small_case(rng, ranks, hidden=None):
    """A case of at most MOST tokens a rank."""
    return Case.random(rng, ranks, int(rng.integers(1, 4)), hidden=hidden, most=MOST + 1)


def sent(buffer, kind, dtype, case, **options):
    """What low_latency_dispatch gives this rank."""
    return buffer.low_latency_dispatch(kind.make(case.x[buffer.rank], dtype),
                                       kind.make(case.topk_idx[buffer.rank], "int64"), MOST, case.experts,
                                       **options)


def rows_of(case, expert):
    """(source rank, token) of every row of an expert, in order."""
    return [(source, int(token)) for source in range(case.ranks)
            for token in np.nonzero((case.topk_idx[source] == expert).any(1))[0]]


def check_received(buffer, kind, case, recv_x, count, handle):
    """Rows, counts, sources and ranges."""
    per_rank = case.experts // case.ranks
    for local in range(per_rank):
        rows = rows_of(case, buffer.rank * per_rank + local)
        assert int(count[local]) == len(rows)
        got = kind.wide(recv_x)[local, :len(rows)]
        assert (got == np.array([case.x[s][t] for s, t in rows]).reshape(got.shape)).all()
        assert kind.wide(handle[0])[local, :len(rows)].tolist() == [t for _, t in rows]
        for source in range(case.ranks):
            begin, many = divmod(int(kind.wide(handle[1])[local, source]), 1 << 32)
            mine = [i for i, (s, _) in enumerate(rows) if s == source]
            assert many == len(mine) and (not mine or begin == mine[0])


def weighted(case, rank):
    """What combine must give if experts change nothing: each token times the sum of its weights."""
    weights = np.where(case.topk_idx[rank] >= 0, case.weights[rank].astype(np.float64), 0)
    return case.x[rank] * weights.sum(1, keepdims=True)


@every_kind
@pytest.mark.parametrize("hooks", [False, True])
def test_round_trips(rng, kind, dtype, hooks):
    case = small_case(rng, 3)
    case.weights = [np.round(w * 8) / 8 for w in case.weights]  # exact in every dtype

    def rank(group):
        buffer = deep_ep.Buffer(group, low_latency_mode=True)
        me, wide = group.rank(), "float64" if dtype == "float64" else "float32"
        idx, weights = kind.make(case.topk_idx[me], "int64"), kind.make(case.weights[me], wide)
        stats = kind.make(np.zeros(case.experts // case.ranks), "int32")
        for turn in range(4):
            recv_x, count, handle, event, hook = sent(
                buffer, kind, dtype, case, use_fp8=False, return_recv_hook=hooks,
                cumulative_local_expert_recv_stats=stats)
            assert (hook is not None) == hooks and event.event is None
            if hooks:
                hook()
                with pytest.raises(phalanx.Error, match="called before"):
                    hook()
            check_received(buffer, kind, case, recv_x, count, handle)
            assert (kind.wide(stats) == (turn + 1) * kind.wide(count)).all()
            y = recv_x
            if turn % 2:
                y = buffer.get_next_low_latency_combine_buffer(handle)
                y[:] = recv_x
            out = kind.make(np.full(case.x[me].shape, 7.0), dtype) if turn > 1 else None
            sums, event, hook = buffer.low_latency_combine(y, idx, weights, handle, zero_copy=bool(turn % 2),
                                                           return_recv_hook=hooks, out=out)
            if hooks:
                hook()
            assert out is None or sums is out
            want = weighted(case, me)
            close = np.abs(kind.wide(sums) - want) <= kinds.EPS[dtype] * (1 + np.abs(want)) * 8
            assert close.all()

    phalanx.run_threads(3, rank)


@pytest.mark.parametrize("kind", kinds.FP8, ids=lambda kind: kind.name)
@pytest.mark.parametrize("scale", ["any", "rounded", "packed"])
def test_fp8(rng, kind, scale):
    case = small_case(rng, 3, hidden=512)
    case.x = [rng.standard_normal(x.shape) for x in case.x]

    def rank(group):
        buffer = deep_ep.Buffer(group)
        (recv_x, scales), count, handle, _, _ = sent(buffer, kind, "bfloat16", case, use_fp8=True,
                                                     round_scale=scale != "any", use_ue8m0=scale == "packed")
        plain, _, plain_handle, _, _ = sent(buffer, kind, "bfloat16", case, use_fp8=False)
        if scale == "packed":
            as_bytes = np.asarray(scales).view(np.uint8).reshape(*scales.shape[:2], -1)
            factors = np.exp2(as_bytes.astype(np.float64) - 127)
        else:
            factors = kind.wide(scales)
        for local in range(len(count)):
            n = int(count[local])
            back = kind.wide(recv_x)[local, :n] * np.repeat(factors[local, :n], 128, axis=1)
            want = kind.wide(plain)[local, :n]
            assert np.isfinite(back).all()
            assert difference(back, want) < 9e-4
            if scale != "any":
                assert (np.log2(factors[local, :n]) % 1 == 0).all()
        idx = kind.make(case.topk_idx[group.rank()], "int64")
        weights = kind.make(case.weights[group.rank()], "float32")
        for one in (handle, plain_handle):
            sums = kind.wide(buffer.low_latency_combine(plain, idx, weights, one)[0])
            want = weighted(case, group.rank())
            assert difference(sums, want) < 1e-5

    phalanx.run_threads(3, rank)


def test_fp8_where_there_is_none(rng):
    """Kinds without e4m3 say so before anything is sent."""
    case = small_case(rng, 2, hidden=8)

    def rank(group):
        buffer = deep_ep.Buffer(group)
        for kind in set(kinds.KINDS) - set(kinds.FP8):
            with pytest.raises(phalanx.Unsupported, match="use_fp8"):
                sent(buffer, kind, "float32", case)
        group.barrier()

    phalanx.run_threads(2, rank)


def test_how_long_ranks_are_waited_for(rng):
    case = small_case(rng, 3, hidden=8)
    late = 0.05

    def rank(group):
        me = group.rank()
        buffer = deep_ep.Buffer(group)
        dispatch, combine = np.zeros(3, np.int64), np.zeros(3, np.int64)
        sent(buffer, kinds.Numpy, "float32", case, use_fp8=False)  # memory is taken together
        group.barrier()
        if me == 1:
            time.sleep(late)
        recv_x, _, handle, _, _ = sent(buffer, kinds.Numpy, "float32", case, use_fp8=False,
                                       dispatch_wait_recv_cost_stats=dispatch)
        group.barrier()
        if me == 2:
            time.sleep(late)
        buffer.low_latency_combine(recv_x, case.topk_idx[me], case.weights[me], handle,
                                   combine_wait_recv_cost_stats=combine)
        assert dispatch[me] == combine[me] == 0
        assert me == 1 or dispatch[1] > 0.5e9 * late
        assert me == 2 or combine[2] > 0.5e9 * late

    phalanx.run_threads(3, rank)


def test_mistakes(rng):
    case = small_case(rng, 2, hidden=64)
    kind = kinds.Numpy

    def rank(group):
        buffer = deep_ep.Buffer(group)
        for options, says in (({"async_finish": True, "return_recv_hook": True}, "one of them only"),
                              ({"use_fp8": False, "round_scale": True}, "round_scale needs"),
                              ({"use_ue8m0": True, "round_scale": True}, "hidden is 64"),
                              ({"use_fp8": False, "dispatch_wait_recv_cost_stats": 1}, "wait_recv_cost"),
                              ({"use_fp8": False, "dispatch_wait_recv_cost_stats": np.zeros(3, np.int64)},
                               "wait_recv_cost")):
            with pytest.raises(phalanx.Error, match=says):
                sent(buffer, kind, "float32", case, **options)
        with pytest.raises(phalanx.ArgumentError, match="enable_shrink"):
            buffer.low_latency_clean_mask_buffer()
        recv_x, _, handle, _, _ = sent(buffer, kind, "float32", case, use_fp8=False)
        idx, weights = case.topk_idx[group.rank()], case.weights[group.rank()]
        with pytest.raises(phalanx.Unsupported, match="use_logfmt"):
            buffer.low_latency_combine(recv_x, idx, weights, handle, use_logfmt=True)
        with pytest.raises(phalanx.ArgumentError, match="handle is a tuple"):
            buffer.low_latency_combine(recv_x, idx, weights, tuple(handle))
        with pytest.raises(phalanx.ArgumentError, match="x has shape"):
            buffer.low_latency_combine(recv_x[:, 1:].copy(), idx, weights, handle)
        buffer.low_latency_combine(recv_x, idx, weights, handle)
        with pytest.raises(phalanx.Error):  # it was combined
            buffer.low_latency_combine(recv_x, idx, weights, handle)

    phalanx.run_threads(2, rank)


def test_hook_that_is_dropped_ends_the_world(rng):
    case = small_case(rng, 2, hidden=8)

    def rank(group):
        buffer = deep_ep.Buffer(group)
        sent(buffer, kinds.Numpy, "float32", case, use_fp8=False, return_recv_hook=group.rank() == 0)
        group.barrier()

    with pytest.raises(phalanx.CommError):
        phalanx.run_threads(2, rank, deadline=5)


def test_masks(rng):
    """A rank that goes away is masked, and the others go on."""
    case = small_case(rng, 3, hidden=8)

    def rank(group):
        buffer = deep_ep.Buffer(group, enable_shrink=True, mask_after=1.0)
        status = np.zeros(3, np.int32)
        with pytest.raises(phalanx.Error, match="no low-latency dispatch yet"):
            buffer.low_latency_query_mask_buffer(status)
        recv_x, _, handle, _, _ = sent(buffer, kinds.Numpy, "float32", case, use_fp8=False)
        idx, weights = case.topk_idx[group.rank()], case.weights[group.rank()]
        buffer.low_latency_combine(recv_x, idx, weights, handle)
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0, 0, 0]
        if group.rank() == 2:
            return None
        recv_x, count, handle, _, _ = sent(buffer, kinds.Numpy, "float32", case, use_fp8=False)
        buffer.low_latency_query_mask_buffer(status)
        per_rank = case.experts // 3
        for local in range(per_rank):
            rows = [row for row in rows_of(case, group.rank() * per_rank + local) if row[0] != 2]
            assert count[local] == len(rows)
        buffer.low_latency_clean_mask_buffer()
        return status.tolist()

    assert phalanx.run_threads(3, rank, deadline=20) == [[0, 0, 1], [0, 0, 1], None]
