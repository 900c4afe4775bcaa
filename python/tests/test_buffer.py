"""Buffer against the slow account, on threads."""

import kinds
import numpy as np
import pytest
from worlds import Case, difference

import phalanx
import phalanx.deep_ep as deep_ep

every_kind = pytest.mark.parametrize("kind, dtype", kinds.EVERY, ids=kinds.IDS)


def dispatched(buffer, kind, dtype, case, **options):
    """(x, topk_idx, weights, what dispatch gave) of this rank."""
    rank = buffer.rank
    x = kind.make(case.x[rank], dtype)
    idx = kind.make(case.topk_idx[rank], "int64")
    weights = kind.make(case.weights[rank], "float32")
    per_rank, per_rdma, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, case.experts)
    assert per_rdma is None
    got = buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                          num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights, **options)
    return x, idx, weights, got


@every_kind
def test_layout(rng, kind, dtype):
    del dtype
    case = Case.random(rng, 4)

    def rank(group):
        idx = kind.make(case.topk_idx[group.rank()], "int64")
        layout = deep_ep.Buffer(group).get_dispatch_layout(idx, case.experts)
        per_rank, _, per_expert, in_rank, event = layout
        assert event.event is None
        goes = case.goes(group.rank())
        assert (kind.wide(in_rank) == goes).all() and str(in_rank.dtype).endswith("bool")
        assert kind.wide(per_rank).tolist() == goes.sum(0).tolist()
        chosen = case.topk_idx[group.rank()]
        assert kind.wide(per_expert).tolist() == [int((chosen == e).sum()) for e in range(case.experts)]

    phalanx.run_threads(4, rank)


@every_kind
def test_dispatch_and_combine(rng, kind, dtype):
    for _ in range(4):
        case = Case.random(rng, int(rng.integers(1, 7)), int(rng.integers(1, 4)))
        phalanx.run_threads(case.ranks, lambda group: check_round_trip(group, kind, dtype, case))


def check_round_trip(group, kind, dtype, case):
    """Everything that comes, bit for bit, and what combine makes of it."""
    buffer = deep_ep.Buffer(group)
    x, _, weights, got = dispatched(buffer, kind, dtype, case)
    recv_x, recv_idx, recv_weights, counts, handle, event = got
    assert event.event is None
    want_x, want_idx, want_weights = case.received(group.rank())
    assert recv_x.dtype == x.dtype and {kinds.kind_of(a) for a in (recv_x, recv_idx, recv_weights)} == {kind}
    assert (kind.wide(recv_x) == want_x).all()
    assert (kind.wide(recv_idx) == want_idx).all()
    assert (kind.wide(recv_weights) == want_weights).all()
    assert counts == case.counts(group.rank())
    ends = [int(handle[0][source, group.rank()]) for source in range(case.ranks)]
    origins = [source for source, _ in case.origins(group.rank())]
    assert ends == [sum(o <= source for o in origins) for source in range(case.ranks)]

    again, none_idx, none_weights, none_counts, none_handle, _ = buffer.dispatch(x, handle=handle)
    assert (none_idx, none_weights, none_counts, none_handle) == (None, None, None, None)
    assert (kind.wide(again) == want_x).all()

    sums, back, _ = buffer.combine(recv_x, handle, topk_weights=recv_weights)
    goes = case.goes(group.rank())
    assert sums.dtype == x.dtype
    assert (kind.wide(sums) == case.x[group.rank()] * goes.sum(1, keepdims=True)).all()
    assert (kind.wide(back) == np.where(case.topk_idx[group.rank()] >= 0, kind.wide(weights), 0)).all()
    alone, none_weights, _ = buffer.combine(recv_x, handle)
    assert none_weights is None and (kind.wide(alone) == kind.wide(sums)).all()


@every_kind
def test_random_values_come_back(rng, kind, dtype):
    """DeepEP's own measure: combined / ranks equals x to 5e-6."""
    case = Case.random(rng, 4, k=4, hidden=256)
    case.x = [rng.standard_normal(x.shape) for x in case.x]

    def rank(group):
        buffer = deep_ep.Buffer(group)
        x, _, weights, (recv_x, _, recv_weights, _, handle, _) = dispatched(buffer, kind, dtype, case)
        sums, back, _ = buffer.combine(recv_x, handle, topk_weights=recv_weights)
        goes = case.goes(group.rank()).sum(1, keepdims=True)
        a, b = kind.wide(sums)[goes[:, 0] > 0] / goes[goes[:, 0] > 0], kind.wide(x)[goes[:, 0] > 0]
        assert difference(a, b) < 5e-6
        given = np.where(case.topk_idx[group.rank()] >= 0, kind.wide(weights), 0)
        assert np.abs(kind.wide(back) - given).max(initial=0) < 1e-9

    phalanx.run_threads(4, rank)


@every_kind
def test_rank_constant_data(rng, kind, dtype):
    """Rows from rank r hold r, by the prefix matrix."""
    case = Case.random(rng, 5)
    case.x = [np.full_like(x, r) for r, x in enumerate(case.x)]

    def rank(group):
        recv_x, _, _, _, handle, _ = dispatched(deep_ep.Buffer(group), kind, dtype, case)[3]
        begin = 0
        for source in range(case.ranks):
            end = int(handle[0][source][group.rank()])
            assert (kind.wide(recv_x)[begin:end] == source).all()
            begin = end
        assert begin == len(recv_x)

    phalanx.run_threads(5, rank)


@every_kind
def test_worst_tokens_and_alignment(rng, kind, dtype):
    case = Case.random(rng, 3)
    worst = sum(len(x) for x in case.x) + 5

    def rank(group):
        buffer = deep_ep.Buffer(group)
        *_, got = dispatched(buffer, kind, dtype, case, num_worst_tokens=worst)
        recv_x, recv_idx, recv_weights, counts, handle, _ = got
        want_x, want_idx, want_weights = case.received(group.rank())
        n = len(want_x)
        assert counts == [] and len(recv_x) == len(recv_idx) == len(recv_weights) == worst
        assert (kind.wide(recv_x)[:n] == want_x).all() and (kind.wide(recv_idx)[:n] == want_idx).all()
        assert (kind.wide(recv_idx)[n:] == -1).all() and (kind.wide(recv_weights)[n:] == 0).all()
        sums, _, _ = buffer.combine(recv_x, handle, topk_weights=recv_weights)
        assert (kind.wide(sums) == case.x[group.rank()] * case.goes(group.rank()).sum(1, keepdims=True)).all()
        assert len(buffer.dispatch(kind.make(case.x[group.rank()], dtype), handle=handle)[0]) == worst

        counts = dispatched(buffer, kind, dtype, case, expert_alignment=16)[3][3]
        assert counts == [-(-n // 16) * 16 for n in case.counts(group.rank())]

    phalanx.run_threads(3, rank)


@every_kind
def test_without_topk(rng, kind, dtype):
    """Only which rank gets which token is given."""
    case = Case.random(rng, 4)

    def rank(group):
        buffer = deep_ep.Buffer(group)
        x = kind.make(case.x[group.rank()], dtype)
        idx = kind.make(case.topk_idx[group.rank()], "int64")
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, case.experts)
        recv_x, none_idx, none_weights, counts, handle, _ = buffer.dispatch(
            x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert)
        assert none_idx is None and none_weights is None
        assert (kind.wide(recv_x) == case.received(group.rank())[0]).all()
        assert counts == case.counts(group.rank())
        sums, _, _ = buffer.combine(recv_x, handle)
        assert (kind.wide(sums) == case.x[group.rank()] * case.goes(group.rank()).sum(1, keepdims=True)).all()

    phalanx.run_threads(4, rank)


def fp8_kinds():
    """Kinds that have e4m3."""
    if kinds.torch and hasattr(kinds.torch, "float8_e4m3fn"):
        yield kinds.Torch, kinds.torch.float8_e4m3fn
    if kinds.ml_dtypes:
        yield kinds.Numpy, kinds.ml_dtypes.float8_e4m3fn


@pytest.mark.parametrize("kind, fp8", list(fp8_kinds()))
def test_fp8_with_scales(rng, kind, fp8):
    """FP8 rows and their scales move as they are."""
    case = Case.random(rng, 4, hidden=256)

    def rank(group):
        buffer = deep_ep.Buffer(group)
        x = kind.make(case.x[group.rank()], "float32")
        x = x.to(fp8) if kind is kinds.Torch else x.astype(fp8)
        scales = kind.make(case.x[group.rank()][:, :2] * 3, "float32")
        idx = kind.make(case.topk_idx[group.rank()], "int64")
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, case.experts)
        (recv_x, recv_scales), *_, handle, _ = buffer.dispatch(
            (x, scales), num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, topk_idx=idx)
        want = case.received(group.rank())[0]
        assert recv_x.dtype == fp8
        assert (kind.wide(recv_x) == want).all() and (kind.wide(recv_scales) == want[:, :2] * 3).all()
        again, scales_again = buffer.dispatch((x, scales), handle=handle)[0]
        assert (kind.wide(again) == want).all() and (kind.wide(scales_again) == want[:, :2] * 3).all()

    phalanx.run_threads(4, rank)


@every_kind
def test_bias(rng, kind, dtype):
    """One or two tensors are added inside the sum."""
    case = Case.random(rng, 3)

    def rank(group):
        buffer = deep_ep.Buffer(group)
        *_, got = dispatched(buffer, kind, dtype, case)
        values = [rng_of(group).integers(-8, 9, case.x[group.rank()].shape) for _ in range(2)]
        bias = [kind.make(v.astype(np.float64), dtype) for v in values]
        plain = kind.wide(buffer.combine(got[0], got[4])[0])
        one = buffer.combine(got[0], got[4], bias=bias[0])[0]
        two = buffer.combine(got[0], got[4], bias=tuple(bias))[0]
        assert (kind.wide(one) == plain + values[0]).all() and (kind.wide(two) == plain + sum(values)).all()
        with pytest.raises(phalanx.ArgumentError, match="bias has 4 parts"):
            buffer.combine(got[0], got[4], bias=bias * 2)
        with pytest.raises(phalanx.ArgumentError, match="bias has shape"):
            buffer.combine(got[0], got[4], bias=kind.make(np.zeros((77, 1)), dtype))

    phalanx.run_threads(3, rank)


def rng_of(group):
    """The same numbers whenever a rank asks."""
    return np.random.default_rng(group.rank())


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
def test_combine_in_fp8(rng, kind):
    """Half the bytes, and about three bits of significand."""
    case = Case.random(rng, 3, hidden=256)
    case.x = [rng.standard_normal(x.shape) for x in case.x]

    def rank(group):
        buffer = deep_ep.Buffer(group)
        *_, got = dispatched(buffer, kind, "float32", case)
        exact = kind.wide(buffer.combine(got[0], got[4])[0])
        rough = kind.wide(buffer.combine(got[0], got[4], quantize=True)[0])
        assert difference(exact, rough) < 9e-4

    phalanx.run_threads(3, rank)


def test_events(rng):
    case = Case.random(rng, 2)

    def rank(group):
        buffer = deep_ep.Buffer(group)
        kind = kinds.KINDS[-1]
        seen = []
        event = buffer.capture()
        *_, got = dispatched(buffer, kind, "float32", case, previous_event=event, async_finish=True,
                             allocate_on_comm_stream=True)
        got[-1].register_hook_after_wait(lambda: seen.append("hook"))
        with pytest.raises(phalanx.Error, match="registered"):
            got[-1].register_hook_after_wait(print)
        with got[-1]:
            assert not seen
        assert seen == ["hook"]
        _, _, event = buffer.combine(got[0], got[4], async_finish=True, previous_event=got[-1])
        event.current_stream_wait(release_handle=True)
        with pytest.raises(phalanx.Error, match="no event"):
            event.current_stream_wait()

    phalanx.run_threads(2, rank)


@every_kind
def test_twice_the_same_bits(rng, kind, dtype):
    case = Case.random(rng, 4, hidden=64)
    case.x = [rng.standard_normal(x.shape) for x in case.x]

    def rank(group):
        buffer = deep_ep.Buffer(group)
        *_, first = dispatched(buffer, kind, dtype, case)
        *_, second = dispatched(buffer, kind, dtype, case)
        assert (kind.wide(first[0]) == kind.wide(second[0])).all()
        return kind.wide(buffer.combine(first[0], first[4])[0])

    one = phalanx.run_threads(4, rank)
    two = phalanx.run_threads(4, rank, threads_per_rank=3)
    assert all((a == b).all() for a, b in zip(one, two))


def test_static_parts():
    assert deep_ep.Buffer.get_low_latency_rdma_size_hint(128, 7168, 8, 256) > 0
    config = deep_ep.Buffer.get_dispatch_config(8)
    assert config.get_nvl_buffer_size_hint(7168 * 2, 8) == 0 and config.num_sms == deep_ep.Buffer.num_sms
    deep_ep.Buffer.set_num_sms(24)
    assert deep_ep.Buffer.get_combine_config(8).num_sms == 24
    deep_ep.Buffer.set_num_sms(20)
    assert deep_ep.Buffer.is_sm90_compiled() is False
    with pytest.raises(phalanx.ArgumentError, match="num_max_nvl_chunked_send_tokens is 300"):
        deep_ep.Config(20, 300, 256)
