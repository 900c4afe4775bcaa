"""rebalance_experts: the public example, the definition in NumPy, and what policy="best" promises."""

import kinds
import numpy as np
import pytest

import phalanx
from phalanx.eplb import rebalance_experts

LOADS = np.array([[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
                  [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]])
SLOTS = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
         [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


def packed(weight, packs):
    """(pack, rank in pack) of each item: heaviest first, to the least loaded pack with room."""
    items, room = len(weight), len(weight) // packs
    pack, place = np.zeros(items, int), np.zeros(items, int)
    load, held = np.zeros(packs, np.float32), [0] * packs
    if room == 1:
        return np.arange(items), place
    for item in np.argsort(-weight, kind="stable"):
        best = min((p for p in range(packs) if held[p] < room), key=lambda p: (load[p], p))
        pack[item], place[item] = best, held[best]
        load[best] += weight[item]
        held[best] += 1
    return pack, place


def flat_eplb(weight, replicas, gpus):
    """Slots of one layer, without nodes."""
    log, count = list(range(len(weight))), np.ones(len(weight), int)
    for _ in range(replicas - len(weight)):
        heaviest = int(np.argmax(weight / count))
        log.append(heaviest)
        count[heaviest] += 1
    log = np.array(log)
    pack, place = packed((weight / count)[log].astype(np.float32), gpus)
    slots = np.zeros(replicas, int)
    slots[pack * (replicas // gpus) + place] = log
    return slots


def per_gpu(weight, slots, gpus):
    """[layers, gpus]: loads under a placement."""
    out = np.zeros((len(weight), gpus))
    for layer, row in enumerate(slots):
        count = np.bincount(row, minlength=weight.shape[1])
        out[layer] = (weight[layer] / count)[row].reshape(gpus, -1).sum(1)
    return out


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_public_example(kind, dtype):
    slots, where, count = rebalance_experts(kind.make(LOADS, dtype), 16, 4, 2, 8)
    assert {kinds.kind_of(table) for table in (slots, where, count)} == {kind}
    assert kind.wide(slots).tolist() == SLOTS
    for layer in range(2):
        for expert in range(12):
            there = [s for s in kind.wide(where)[layer, expert] if s >= 0]
            assert sorted(there) == [s for s, e in enumerate(SLOTS[layer]) if e == expert]
            assert len(there) == kind.wide(count)[layer, expert]


def test_definition(rng):
    for _ in range(50):
        gpus = int(rng.integers(1, 9))
        slots = int(rng.integers(1, 6))
        experts = int(rng.integers(1, gpus * slots + 1))
        weight = rng.integers(0, 1000, (2, experts)).astype(np.float32)
        ours, _, _ = rebalance_experts(weight, gpus * slots, 1, 1, gpus)
        for layer in range(2):
            assert ours[layer].tolist() == flat_eplb(weight[layer], gpus * slots, gpus).tolist()


def test_best_is_better_and_moves_little(rng):
    weight = rng.lognormal(0, 1, (4, 64)).astype(np.float32)
    eplb, _, _ = rebalance_experts(weight, 80, 8, 1, 8)
    best, _, _ = rebalance_experts(weight, 80, 8, 1, 8, policy="best")
    assert (per_gpu(weight, best, 8).max(1) <= per_gpu(weight, eplb, 8).max(1) * 1.000001).all()
    later = weight * rng.uniform(0.8, 1.25, weight.shape).astype(np.float32)
    kept, _, _ = rebalance_experts(later, 80, 8, 1, 8, policy="best", previous=best, max_moves=0)
    assert (kept == best).all()
    moved, _, _ = rebalance_experts(later, 80, 8, 1, 8, policy="best", previous=best, max_moves=5)
    changes = sum(len(set(new) - set(old)) for layer in range(4)
                  for new, old in zip(moved[layer].reshape(8, 10), best[layer].reshape(8, 10)))
    assert changes <= 5
    assert (per_gpu(later, moved, 8).max(1) <= per_gpu(later, best, 8).max(1) * 1.000001).all()


@pytest.mark.parametrize("sizes, options, says", [
    ((15, 4, 2, 8), {}, "8"),
    ((8, 4, 2, 8), {}, "12"),
    ((16, 4, 2, 8), {"policy": "worst"}, "policy is 'worst'"),
    ((16, 4, 2, 8), {"previous": np.zeros((2, 16), np.int64)}, "policy='best'"),
    ((16, 4, 2, 8), {"policy": "best", "previous": np.zeros((1, 16), np.int64)}, "previous has shape"),
    ((16, 4, 2, 8), {"policy": "best", "previous": np.full((2, 16), 12)}, "previous: expert 12 of 12"),
    ((16, 4, 2, 8), {"policy": "best", "max_moves": 3}, "needs previous"),
])
def test_mistakes(sizes, options, says):
    with pytest.raises(phalanx.Error, match=says):
        rebalance_experts(LOADS.astype(np.float32), *sizes, **options)


def test_bad_loads():
    for bad in (-1.0, np.nan, np.inf):
        weight = LOADS.astype(np.float32)
        weight[1, 3] = bad
        with pytest.raises(phalanx.Error):
            rebalance_experts(weight, 16, 4, 2, 8)
    with pytest.raises(phalanx.ArgumentError, match="weight is a list"):
        rebalance_experts([[1.0, 2.0]], 2, 1, 1, 1)
    with pytest.raises(phalanx.ArgumentError, match="weight has shape"):
        rebalance_experts(LOADS[0], 16, 4, 2, 8)
