"""Random tokens of all ranks, what must come of them by a slow account in NumPy, and processes as ranks."""

import dataclasses
import multiprocessing
import queue
import tempfile
import time

import kinds
import numpy as np


def difference(a, b):
    """DeepEP's measure of how far arrays are apart: 0 where they are equal, 1 where they have nothing in
    common.
    """
    sizes = (a**2).sum() + (b**2).sum()
    return 1 - 2 * (a * b).sum() / sizes if sizes > 0 else 0.0


@dataclasses.dataclass
class Case:
    """What every rank of a world has; values are small integers, so that sums are exact in every dtype."""

    experts: int
    x: list
    topk_idx: list
    weights: list

    @classmethod
    def random(cls, rng, ranks, experts_per_rank=2, k=None, hidden=None, most=40):
        """A case of that many ranks; some may have no tokens."""
        experts = ranks * experts_per_rank
        k = int(rng.integers(1, min(experts, 8) + 1)) if k is None else k
        hidden = int(rng.integers(1, 70)) if hidden is None else hidden
        tokens = [int(rng.integers(0, most)) for _ in range(ranks)]
        return cls(experts, [rng.integers(-8, 9, (t, hidden)).astype(np.float64) for t in tokens],
                   [kinds.random_topk(rng, t, k, experts) for t in tokens],
                   [rng.random((t, k)).astype(np.float32) for t in tokens])

    @property
    def ranks(self):
        """How many ranks there are."""
        return len(self.x)

    def goes(self, source):
        """[tokens, ranks] bool: which tokens of a rank go where."""
        per_rank = self.experts // self.ranks
        owner = np.where(self.topk_idx[source] >= 0, self.topk_idx[source] // per_rank, -1)
        return (owner[:, :, None] == np.arange(self.ranks)).any(1)

    def origins(self, rank):
        """(source rank, token) of every row that a rank receives, in order."""
        return [(source, token) for source in range(self.ranks)
                for token in np.nonzero(self.goes(source)[:, rank])[0]]

    def received(self, rank):
        """(x, local topk_idx, weights) of the rows that a rank receives."""
        per_rank = self.experts // self.ranks
        rows = self.origins(rank)
        k, hidden = self.topk_idx[0].shape[1], self.x[0].shape[1]
        x = np.array([self.x[s][t] for s, t in rows]).reshape(-1, hidden)
        idx = np.array([self.topk_idx[s][t] for s, t in rows], np.int64).reshape(-1, k) - rank * per_rank
        weights = np.array([self.weights[s][t] for s, t in rows], np.float32).reshape(-1, k)
        here = (idx >= 0) & (idx < per_rank)
        return x, np.where(here, idx, -1), np.where(here, weights, 0)

    def counts(self, rank):
        """Rows for each expert of a rank."""
        idx = self.received(rank)[1]
        return [int((idx == e).sum()) for e in range(self.experts // self.ranks)]


def _be(rank, ranks, store, fn, arguments, results):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        results.put((rank, fn(dist.group.WORLD, *arguments), None))
    except BaseException as error:  # told to the parent
        results.put((rank, None, f"{type(error).__name__}: {error}"))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_processes(ranks, fn, *arguments, timeout=120):
    """fn(torch group, *arguments) on as many new processes: ({rank: result}, {rank: error})."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory(prefix="phalanx-test-") as folder:
        processes = [context.Process(target=_be, args=(r, ranks, f"{folder}/store", fn, arguments, results))
                     for r in range(ranks)]
        for process in processes:
            process.start()
        given, errors = {}, {}
        end = time.monotonic() + timeout
        while len(given) + len(errors) < ranks and time.monotonic() < end:
            ended = not any(process.is_alive() for process in processes)
            try:
                rank, result, error = results.get(timeout=0.2)
            except queue.Empty:
                if ended:
                    break
                continue
            (given if error is None else errors)[rank] = result if error is None else error
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()
                errors.setdefault("alive", []).append(process.name)
    return given, errors
