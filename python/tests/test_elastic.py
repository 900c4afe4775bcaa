"""ElasticBuffer against the slow account, on threads."""

import kinds
import numpy as np
import pytest
from worlds import Case

import phalanx
import phalanx.deep_ep as deep_ep

every_kind = pytest.mark.parametrize("kind, dtype", kinds.EVERY, ids=kinds.IDS)


def most_of(case):
    """A num_max_tokens_per_rank that fits."""
    return max(len(x) for x in case.x) + 3


def dispatched(buffer, kind, dtype, case, **options):
    """What dispatch gives this rank."""
    rank = buffer.rank_idx
    return buffer.dispatch(kind.make(case.x[rank], dtype), kind.make(case.topk_idx[rank], "int64"),
                           kind.make(case.weights[rank], "float32"), num_experts=case.experts,
                           num_max_tokens_per_rank=most_of(case), **options)


def expanded(case, rank, alignment):
    """(x, weights) of a rank's expanded rows, and the row of every slot of its compact ones."""
    x, idx, weights = case.received(rank)
    counts = np.array(case.counts(rank))
    firsts = np.concatenate([[0], np.cumsum(-(-counts // alignment) * alignment)])
    out_x, out_weights = np.zeros((firsts[-1], x.shape[1])), np.zeros(firsts[-1])
    rows, filled = np.full(idx.shape, -1), firsts[:-1].copy()
    for row, slot in np.ndindex(*idx.shape):
        if idx[row, slot] >= 0:
            place = rows[row, slot] = filled[idx[row, slot]]
            filled[idx[row, slot]] += 1
            out_x[place], out_weights[place] = x[row], weights[row, slot]
    return out_x, out_weights.astype(np.float32), rows, counts, firsts


@every_kind
def test_compact(rng, kind, dtype):
    for _ in range(3):
        case = Case.random(rng, int(rng.integers(1, 6)), int(rng.integers(1, 4)))
        phalanx.run_threads(case.ranks, lambda group: check_compact(group, kind, dtype, case))


def check_compact(group, kind, dtype, case):
    """Rows, the handle, cached dispatch and combine."""
    rank, alignment = group.rank(), 4
    buffer = deep_ep.ElasticBuffer(group)
    stats = kind.make(np.ones(case.experts // case.ranks), "int32")
    recv_x, idx, weights, handle, event = dispatched(buffer, kind, dtype, case, expert_alignment=alignment,
                                                     cumulative_local_expert_recv_stats=stats)
    want_x, want_idx, want_weights = case.received(rank)
    counts = np.array(case.counts(rank))
    assert event.event is None and {kinds.kind_of(a) for a in (recv_x, idx, weights)} == {kind}
    assert (kind.wide(recv_x) == want_x).all() and (kind.wide(idx) == want_idx).all()
    assert (kind.wide(weights) == want_weights).all()
    assert (kind.wide(stats) == 1 + counts).all()
    sources = [source * most_of(case) + token for source, token in case.origins(rank)]
    assert kind.wide(handle.recv_src_metadata)[:, 0].tolist() == sources
    assert handle.recv_src_metadata.shape == (len(want_x), want_idx.shape[1] + 2)
    padded = -(-counts // alignment) * alignment
    assert kind.wide(handle.psum_num_recv_tokens_per_expert).tolist() == np.cumsum(padded).tolist()
    assert handle.num_recv_tokens_per_expert_list == padded.tolist()
    from_ranks = np.bincount([s for s, _ in case.origins(rank)], minlength=case.ranks)
    assert kind.wide(handle.psum_num_recv_tokens_per_scaleup_rank).tolist() == np.cumsum(from_ranks).tolist()

    again, again_idx, no_weights, same, _ = buffer.dispatch(kind.make(case.x[rank], dtype), handle=handle)
    assert same is handle and no_weights is None
    assert (kind.wide(again) == want_x).all() and (kind.wide(again_idx) == want_idx).all()
    more = buffer.dispatch(kind.make(case.x[rank], dtype), handle=handle,
                           topk_weights=kind.make(case.weights[rank], "float32"))[2]
    assert (kind.wide(more) == want_weights).all()

    sums, back, _ = buffer.combine(recv_x, handle, topk_weights=weights)
    assert (kind.wide(sums) == case.x[rank] * case.goes(rank).sum(1, keepdims=True)).all()
    given = np.where(case.topk_idx[rank] >= 0, case.weights[rank], 0)
    assert (kind.wide(back) == given).all()


@every_kind
@pytest.mark.parametrize("alignment", [1, 8])
def test_expanded(rng, kind, dtype, alignment):
    for _ in range(2):
        case = Case.random(rng, int(rng.integers(1, 6)), int(rng.integers(1, 4)))
        phalanx.run_threads(case.ranks, lambda group: check_expanded(group, kind, dtype, case, alignment))


def check_expanded(group, kind, dtype, case, alignment):
    """The same in expanded form."""
    rank = group.rank()
    buffer = deep_ep.ElasticBuffer(group, num_max_tokens_per_rank=most_of(case))
    recv_x, no_idx, weights, handle, _ = dispatched(buffer, kind, dtype, case, expert_alignment=alignment,
                                                    do_expand=True, do_zero_padding=True)
    want_x, want_weights, rows, counts, firsts = expanded(case, rank, alignment)
    assert no_idx is None and handle.num_expanded_tokens == len(want_x)
    assert (kind.wide(recv_x) == want_x).all() and (kind.wide(weights) == want_weights).all()
    assert (kind.wide(handle.recv_src_metadata)[:, 2:] == rows).all()
    assert kind.wide(handle.num_unaligned_recv_tokens_per_expert).tolist() == counts.tolist()
    assert kind.wide(handle.psum_num_recv_tokens_per_expert).tolist() == (firsts[:-1] + counts).tolist()

    again, _, more, _, _ = buffer.dispatch(
        kind.make(case.x[rank], dtype), topk_weights=kind.make(case.weights[rank], "float32"), handle=handle,
        do_expand=True)
    assert (kind.wide(again) == want_x).all() and (kind.wide(more) == want_weights).all()

    sums, back, _ = buffer.combine(recv_x, handle, topk_weights=weights)
    chosen = (case.topk_idx[rank] >= 0).sum(1, keepdims=True)
    assert (kind.wide(sums) == case.x[rank] * chosen).all()
    assert (kind.wide(back) == np.where(case.topk_idx[rank] >= 0, case.weights[rank], 0)).all()


@pytest.mark.parametrize("kind, dtype", [case for case in kinds.EVERY if "16" in case[1]])
def test_order_of_sums(rng, kind, dtype):
    """Bit for bit: inside a rank by slot in f32, rounded, then over ranks by each one's last slot."""
    case = Case.random(rng, 4, 3, k=6, hidden=32)
    values = rng.standard_normal((case.experts, 32)).astype(np.float32)  # what an expert makes of any token

    def rounded(x):
        return kind.wide(kind.make(x.astype(np.float64), dtype)).astype(np.float32)

    def rank(group):
        buffer = deep_ep.ElasticBuffer(group)
        recv_x, _, _, handle, _ = dispatched(buffer, kind, dtype, case, do_expand=True)
        y = np.zeros(kind.wide(recv_x).shape, np.float32)
        per_rank = case.experts // case.ranks
        ends = kind.wide(handle.psum_num_recv_tokens_per_expert)
        counts = kind.wide(handle.num_unaligned_recv_tokens_per_expert)
        for expert in range(per_rank):
            y[ends[expert] - counts[expert]:ends[expert]] = values[group.rank() * per_rank + expert]
        sums, _, _ = buffer.combine(kind.make(y, dtype), handle)
        for token, chosen in enumerate(case.topk_idx[group.rank()]):
            parts = {}
            for slot, expert in enumerate(chosen):
                if expert >= 0:
                    _, part = parts.pop(expert // per_rank, (0, np.zeros(32, np.float32)))
                    parts[expert // per_rank] = (slot, part + rounded(values[expert]))
            total = np.zeros(32, np.float32)
            for _, part in sorted(parts.values(), key=lambda p: p[0]):
                total = total + rounded(part)
            assert (kind.wide(sums)[token] == rounded(total)).all()

    phalanx.run_threads(4, rank)


def test_without_cpu_sync_and_mistakes(rng):
    case = Case.random(rng, 3)
    kind = kinds.KINDS[-1]

    def rank(group):
        buffer = deep_ep.ElasticBuffer(group, explicitly_destroy=True, allow_multiple_reduction=False)
        recv_x, idx, weights, handle, _ = dispatched(buffer, kind, "float32", case, do_cpu_sync=False)
        n = len(case.received(group.rank())[0])
        assert len(recv_x) == len(idx) == len(weights) == 3 * most_of(case)
        assert (kind.wide(idx)[n:] == -1).all()
        assert (kind.wide(recv_x)[:n] == case.received(group.rank())[0]).all()
        x = kind.make(case.x[group.rank()], "float32")
        for wrong, says in (({"handle": handle, "num_experts": 99}, "num_experts is 99"),
                            ({"handle": handle, "do_expand": True}, "do_expand is True"),
                            ({"handle": 3}, "handle is a int"), ({}, "topk_idx is None"),
                            ({"do_zero_padding": True}, "do_zero_padding needs do_expand"),
                            ({"handle": handle, "cumulative_local_expert_recv_stats": np.zeros(99, np.int32)},
                             "cumulative_local_expert_recv_stats has shape")):
            with pytest.raises(phalanx.ArgumentError, match=says):
                buffer.dispatch(x, **wrong)
        expanded_x, _, _, expanded_handle, _ = dispatched(buffer, kind, "float32", case, do_expand=True)
        with pytest.raises(phalanx.Unsupported, match="allow_multiple_reduction"):
            buffer.combine(expanded_x, expanded_handle)
        for name in ("engram_write", "pp_send", "all_gather", "get_comm_stream"):
            with pytest.raises(phalanx.Unsupported, match=name):
                getattr(buffer, name)
        assert buffer.get_logical_domain_size() == (1, 3)
        buffer.barrier()
        buffer.destroy()
        with pytest.raises(phalanx.Error, match="destroyed"):
            buffer.barrier()

    phalanx.run_threads(3, rank)


def test_fp8_compact_and_expanded(rng):
    """Scales follow their rows, row-major or column-major."""
    if kinds.ml_dtypes is None:
        pytest.skip("ml_dtypes is not there")
    case = Case.random(rng, 3, hidden=256)

    def rank(group):
        me = group.rank()
        buffer = deep_ep.ElasticBuffer(group)
        x = case.x[me].astype(kinds.ml_dtypes.float8_e4m3fn)
        scales = np.ascontiguousarray(case.x[me][:, :2], np.float32)
        for expand in (False, True):
            got = buffer.dispatch((x, scales), case.topk_idx[me], num_experts=case.experts, do_expand=expand,
                                  num_max_tokens_per_rank=most_of(case), use_tma_aligned_col_major_sf=expand)
            want = expanded(case, me, 1)[0] if expand else case.received(me)[0]
            assert (got[0][0].astype(np.float64) == want).all() and (got[0][1] == want[:, :2]).all()
            assert got[0][1].flags.f_contiguous == expand or got[0][1].shape[0] < 2

    phalanx.run_threads(3, rank)
