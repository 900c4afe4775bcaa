"""Operations that go on after their call has returned, until their event has been waited for."""

import threading

import kinds
import numpy as np
import pytest
from worlds import Case

import phalanx
import phalanx.deep_ep as deep_ep

every_kind = pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)


def layout(buffer, idx, experts):
    """The arguments of dispatch that get_dispatch_layout gives."""
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, experts)
    return {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert}


def made(kind, case, rank):
    """(x, topk_idx, weights) of a rank."""
    return (kind.make(case.x[rank], "float32"), kind.make(case.topk_idx[rank], "int64"),
            kind.make(case.weights[rank], "float32"))


@every_kind
def test_a_call_returns_before_the_others_have_called(rng, kind):
    """Rank 1 calls only when rank 0's call has returned: one that waited would never return."""
    case = Case.random(rng, 2, most=300, hidden=64)
    returned = [threading.Event(), threading.Event()]

    def rank(group):
        me = group.rank()
        buffer = deep_ep.Buffer(group)
        x, idx, weights = made(kind, case, me)
        recv_x, _, recv_weights, _, handle, _ = buffer.dispatch(
            x, topk_idx=idx, topk_weights=weights, **layout(buffer, idx, case.experts))
        wanted = [kind.wide(recv_x), *map(kind.wide, buffer.combine(recv_x, handle, recv_weights)[:2])]
        if me == 1:
            assert returned[0].wait(30)
        sums, back, event = buffer.combine(recv_x, handle, recv_weights, async_finish=True)
        returned[0].set()
        if me == 1:
            assert returned[1].wait(30)
        again, *_, later = buffer.dispatch(x, handle=handle, async_finish=me == 0)
        returned[1].set()
        event.current_stream_wait()
        if me == 0:
            later.current_stream_wait()
        for got, want in zip((again, sums, back), wanted):
            assert (kind.wide(got) == want).all()

    phalanx.run_threads(2, rank, deadline=20)


@every_kind
def test_two_batches_in_flight(rng, kind):
    """Each in its own way, never waited for but at the end: as if one had come after the other."""
    cases = [Case.random(rng, 3, most=200) for _ in range(2)]

    def rank(group):
        buffer = deep_ep.Buffer(group)
        wanted, flights = [], []
        for case in cases:
            x, idx, weights = made(kind, case, group.rank())
            counts = layout(buffer, idx, case.experts)
            got = buffer.dispatch(x, topk_idx=idx, topk_weights=weights, **counts)
            wanted.append([kind.wide(got[0]), *map(kind.wide, buffer.combine(got[0], got[4], got[2])[:2])])
        for case in cases:
            x, idx, weights = made(kind, case, group.rank())
            got = buffer.dispatch(x, topk_idx=idx, topk_weights=weights, async_finish=True,
                                  **layout(buffer, idx, case.experts))
            sums = buffer.combine(got[0], got[4], got[2], previous_event=got[-1], async_finish=True)
            flights.append((got, sums))
        for (got, sums), want in zip(flights, wanted):
            with sums[-1]:
                got[-1].current_stream_wait()
            for a, b in zip((got[0], *sums[:2]), want):
                assert (kind.wide(a) == b).all()

    phalanx.run_threads(3, rank)


@pytest.mark.parametrize("expand", [False, True])
@every_kind
def test_elastic(rng, kind, expand):
    case = Case.random(rng, 3, hidden=256)
    case.x = [rng.standard_normal(x.shape) for x in case.x]

    def rank(group):
        buffer = deep_ep.ElasticBuffer(group, num_max_tokens_per_rank=40)
        x, idx, weights = made(kind, case, group.rank())
        options = {"num_experts": case.experts, "do_expand": expand, "expert_alignment": 3}
        want_x, _, want_weights, handle, _ = buffer.dispatch(x, idx, weights, **options)
        want, want_back, _ = buffer.combine(want_x, handle, want_weights)
        first = buffer.dispatch(x, idx, weights, async_with_compute_stream=True, **options)
        cached = buffer.dispatch(x, None, weights, handle=first[3], do_expand=expand,
                                 async_with_compute_stream=True)
        for got_x, _, got_weights, _, event in (first, cached):
            sums, back, later = buffer.combine(got_x, handle, got_weights, previous_event=event,
                                               async_with_compute_stream=True)
            later.current_stream_wait()
            pairs = ((got_x, want_x), (got_weights, want_weights), (sums, want), (back, want_back))
            assert all((kind.wide(got) == kind.wide(wanted)).all() for got, wanted in pairs)

    phalanx.run_threads(3, rank)


@every_kind
def test_low_latency(rng, kind):
    case = Case.random(rng, 2, most=12, hidden=128)

    def rank(group):
        buffer = deep_ep.Buffer(group, low_latency_mode=True)
        x, idx, weights = made(kind, case, group.rank())
        sizes = (12, case.experts)
        want_x, want_count, handle, _, _ = buffer.low_latency_dispatch(x, idx, *sizes, use_fp8=False)
        want_x = kind.wide(want_x).copy()
        want = kind.wide(buffer.low_latency_combine(kind.make(want_x, "float32"), idx, weights, handle)[0])
        got_x, count, handle, event, hook = buffer.low_latency_dispatch(x, idx, *sizes, use_fp8=False,
                                                                        async_finish=True)
        assert hook is None
        event.current_stream_wait()
        assert (kind.wide(count) == kind.wide(want_count)).all()
        for local, n in enumerate(kind.wide(count)):
            assert (kind.wide(got_x)[local, :n] == want_x[local, :n]).all()
        sums, event, hook = buffer.low_latency_combine(got_x, idx, weights, handle, async_finish=True)
        assert hook is None
        event.current_stream_wait()
        assert (kind.wide(sums) == want).all()

    phalanx.run_threads(2, rank)


def test_what_fails_is_raised_by_the_wait(rng):
    """Rank 1 never combines: rank 0's call returns, and its event tells."""
    case = Case.random(rng, 2, hidden=8)
    told = []

    def rank(group):
        buffer = deep_ep.Buffer(group)
        x, idx, weights = made(kinds.Numpy, case, group.rank())
        got = buffer.dispatch(x, topk_idx=idx, topk_weights=weights, **layout(buffer, idx, case.experts))
        if group.rank() == 0:
            event = buffer.combine(got[0], got[4], async_finish=True)[-1]
            with pytest.raises(phalanx.CommError) as failure:
                event.current_stream_wait()
            told.append(str(failure.value))
        else:
            threading.Event().wait(4)

    phalanx.run_threads(2, rank, deadline=2)
    assert "rank 1" in told[0]


def test_arguments_belong_to_the_operation_until_it_ends(rng):
    """Nothing refers to them any more when the call has returned, and yet they are there."""
    case = Case.random(rng, 2, most=200, hidden=500)

    def rank(group):
        buffer = deep_ep.Buffer(group)
        x, idx, weights = made(kinds.Numpy, case, group.rank())
        got = buffer.dispatch(x, topk_idx=idx, topk_weights=weights, **layout(buffer, idx, case.experts))
        want = buffer.combine(got[0], got[4])[0]
        sums, _, event = buffer.combine(got[0].copy(), got[4], bias=np.zeros_like(want), async_finish=True)
        for _ in range(20):
            np.full_like(got[0], 7)
        event.current_stream_wait()
        assert (sums == want).all()

    phalanx.run_threads(2, rank)
