"""Ranks as threads, as processes of a torch group, under torchrun and mpirun; and how they fail."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import time

import kinds
import numpy as np
import pytest
from worlds import Case, run_processes

import phalanx
import phalanx.deep_ep as deep_ep
from test_buffer import check_round_trip

needs_torch = pytest.mark.skipif(kinds.torch is None, reason="torch is not there")


def test_results_by_rank():
    assert phalanx.run_threads(5, lambda group: (group.rank(), group.size())) == [(r, 5) for r in range(5)]


def test_one_rank():
    group = phalanx.init()
    assert (group.rank(), group.size()) == (0, 1) and phalanx.init() is group
    group.barrier()


def test_exception_of_a_rank_comes_out():
    seen = [None] * 3

    def rank(group):
        if group.rank() == 1:
            raise KeyError("mine")
        try:
            group.barrier()
        except phalanx.CommError as error:
            seen[group.rank()] = str(error)
            raise

    began = time.monotonic()
    with pytest.raises(KeyError, match="mine"):
        phalanx.run_threads(3, rank)
    assert time.monotonic() - began < 5
    assert all("rank 1: KeyError: 'mine'" in seen[r] for r in (0, 2))


def test_late_rank_is_named():
    def rank(group):
        if group.rank() == 2:
            time.sleep(3)
        group.barrier()

    with pytest.raises(phalanx.CommError, match="rank 2"):
        phalanx.run_threads(3, rank, deadline=0.5)


def test_calls_that_differ_are_an_error():
    def rank(group):
        buffer = deep_ep.Buffer(group)
        if group.rank() == 0:
            return group.barrier()
        x = np.zeros((3, 4), np.float32)
        idx = np.zeros((3, 1), np.int64)
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, 2)
        return buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                               num_tokens_per_expert=per_expert, topk_idx=idx)

    with pytest.raises(phalanx.CommError):
        phalanx.run_threads(2, rank, deadline=5)


def test_two_threads_at_once():
    """One waits for the other rank; the other is refused."""
    def rank(group):
        if group.rank() == 1:
            time.sleep(1)
            return group.barrier()
        errors = []
        first = threading.Thread(target=group.barrier)
        first.start()
        time.sleep(0.3)
        with pytest.raises(phalanx.Error, match="two threads"):
            group.barrier()
        first.join()
        return errors

    phalanx.run_threads(2, rank)


def test_destroyed():
    def rank(group):
        buffer = deep_ep.Buffer(group, explicitly_destroy=True)
        with pytest.raises(phalanx.Error, match="explicitly_destroy"):
            deep_ep.Buffer(group).destroy()
        buffer.destroy()
        with pytest.raises(phalanx.Error, match="the buffer was destroyed"):
            buffer.get_dispatch_layout(np.zeros((1, 1), np.int64), 2)
        group.barrier()  # the group was the caller's
        group.destroy()
        with pytest.raises(phalanx.Error, match="has left"):
            group.barrier()

    phalanx.run_threads(2, rank)


def test_arrays_outlive_their_world(rng):
    """Results live on, and inputs are let go."""
    case = Case.random(rng, 2, most=30)
    results = phalanx.run_threads(2, lambda group: kinds.Numpy.make(case.x[group.rank()], "float32"))
    kept = []

    def rank(group):
        buffer = deep_ep.Buffer(group)
        x = results[group.rank()]
        idx = case.topk_idx[group.rank()]
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, case.experts)
        for _ in range(50):
            got = buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                                  num_tokens_per_expert=per_expert, topk_idx=idx)
        kept.append((group.rank(), got[0], got[4]))
        before = sys.getrefcount(x)
        buffer.combine(got[0], got[4])
        assert sys.getrefcount(x) == before

    phalanx.run_threads(2, rank)
    gc.collect()
    for number, recv_x, _ in kept:
        assert (recv_x == case.received(number)[0]).all()


def _round_trips(group, seed, times):
    rng = np.random.default_rng(seed)
    for _ in range(times):
        case = Case.random(rng, group.size())
        buffer = deep_ep.Buffer(group, explicitly_destroy=True)
        assert (buffer.rank, buffer.group_size) == (group.rank(), group.size())
        for kind, dtype in kinds.EVERY:
            check_round_trip(phalanx.Group(buffer.runtime), kind, dtype, case)
        buffer.destroy()
    return times


@needs_torch
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_torch_group(rng, ranks):
    given, errors = run_processes(ranks, _round_trips, int(rng.integers(2**32)), 2)
    assert errors == {} and given == {rank: 2 for rank in range(ranks)}


def _raise_on_one(group, which):
    buffer = deep_ep.Buffer(group)
    native = phalanx.Group(buffer.runtime)
    native.barrier()
    if group.rank() == which:
        os._exit(7)
    try:
        native.barrier()
    except phalanx.CommError as error:
        return str(error)
    return "nothing"


@needs_torch
def test_killed_process_is_named():
    given, _ = run_processes(3, _raise_on_one, 1)
    assert sorted(given) == [0, 2]
    assert all("rank 1" in text for text in given.values())


class Communicator:
    """What Buffer needs of mpi4py's, between threads."""

    def __init__(self, rank, barrier, board):
        self.rank, self.barrier, self.board = rank, barrier, board

    def Get_rank(self):
        """This rank's number."""
        return self.rank

    def Get_size(self):
        """The number of ranks."""
        return len(self.board)

    def allgather(self, mine):
        """An object of every rank, by rank."""
        self.board[self.rank] = mine
        self.barrier.wait()
        everyone = list(self.board)
        self.barrier.wait()
        return everyone


def test_communicator(rng):
    """Ranks that meet through a communicator, here all in this process."""
    case = Case.random(rng, 3)
    barrier, board, failures = threading.Barrier(3), [None] * 3, []

    def rank(number):
        try:
            buffer = deep_ep.Buffer(None, comm=Communicator(number, barrier, board), explicitly_destroy=True)
            assert (buffer.rank, buffer.group_size) == (number, 3)
            check_round_trip(phalanx.Group(buffer.runtime), kinds.KINDS[-1], "float32", case)
            buffer.destroy()
        except BaseException as error:  # told to the test
            failures.append(error)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and not any(thread.is_alive() for thread in threads)


LAUNCHED = """
import sys
sys.path.insert(0, sys.argv[1])
import kinds, numpy as np, phalanx
from test_buffer import check_round_trip
from worlds import Case
group = phalanx.init()
for seed in range(3):
    case = Case.random(np.random.default_rng(seed), group.size())
    check_round_trip(group, kinds.KINDS[-1], "float32", case)
print(f"rank {group.rank()} of {group.size()} is done\\n", end="", flush=True)
"""


def _launch(tmp_path, *command):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    result = subprocess.run([*command, str(script), os.path.dirname(__file__)], env=environment, timeout=120,
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    for rank in range(3):
        assert f"rank {rank} of 3 is done" in result.stdout, result.stdout + result.stderr


@needs_torch
def test_torchrun(tmp_path):
    _launch(tmp_path, sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=3")


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not there")
def test_mpirun(tmp_path):
    _launch(tmp_path, "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3", sys.executable)
