"""Ranks: threads of this process, processes that a launcher has started, or those of somebody else's
group.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any, Callable, List, Optional, Set, Tuple, TypeVar

from phalanx import _native
from phalanx.errors import ArgumentError, Error, Unsupported

AT_EXIT_SECONDS = 10.0  # that a process waits, at its end, for the other ranks to leave
T = TypeVar("T")
_open: Set[_native.Rank] = set()  # ranks whose threads may still run
_world: Optional[Group] = None  # of init()


class Group:
    """A rank's view of all ranks of a world. One thread at a time may use it and the buffers made of it.

    Get one from `run_threads`, `init` or `Group.of`; it lasts until `destroy`.
    """

    def __init__(self, native: _native.Rank) -> None:
        self._native = native
        self._leaves = False  # when it is garbage
        for old in list(_open):  # a copy: other threads make groups too
            if old.wait_ended(0):
                _open.discard(old)
        _open.add(native)
        self._rank, self._size = native.place()

    def rank(self) -> int:
        """This rank's number, from 0."""
        return self._rank

    def size(self) -> int:
        """The number of ranks."""
        return self._size

    def barrier(self) -> None:
        """Returns when every rank has called it. CommError: a rank has failed or is late."""
        self._native.barrier()

    def destroy(self) -> None:
        """Leaves the world; never waits. The group and its buffers cannot be used any more."""
        self._native.leave()

    def __del__(self) -> None:
        if getattr(self, "_leaves", False):
            self._native.leave()

    @classmethod
    def of(cls, group: Any, threads_per_rank: int = 0, deadline: float = 0.0) -> Group:
        """A group over the ranks of another: a `torch.distributed` ProcessGroup, or an mpi4py communicator.

        Every rank calls it, as it exchanges the address at which they meet through the given group. On one
        host ranks then share memory; across hosts mpirun must have started them, and they must be all of its
        ranks.

        threads_per_rank: of each operation; 0 means cores / ranks.
        deadline: seconds without progress after which waiting ranks raise CommError; 0 means 600.
        """
        rank, size, gather = _bootstrap(group)
        mine = _native.Meeting() if rank == 0 else None
        here = (socket.gethostname(), _boot_id(), mine.port if mine else 0, secrets.token_hex(16))
        places = gather(here)
        if len({place[:2] for place in places}) > 1:
            hosts = sorted({place[0] for place in places})
            return _over_mpi(rank, size, hosts, threads_per_rank, deadline)
        if size == 1:
            made = cls(_native.start_threads(1, threads_per_rank, deadline)[0])
        else:
            made = cls(_native.join_processes((rank, size), places[0][2:], mine, threads_per_rank, deadline))
        made._leaves = True
        return made


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return f.read().strip()


def _bootstrap(group: Any) -> Tuple[int, int, Callable[[Any], List[Any]]]:
    """(rank, size, a function that gathers an object of every rank) of somebody's group."""
    if hasattr(group, "Get_rank") and hasattr(group, "allgather"):  # mpi4py
        return group.Get_rank(), group.Get_size(), group.allgather
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not isinstance(group, distributed.ProcessGroup):
        raise ArgumentError(f"group is a {type(group).__name__}; it must be a phalanx.Group, a "
                            "torch.distributed ProcessGroup or an mpi4py communicator")

    def gather(mine: Any) -> List[Any]:
        everyone: List[Any] = [None] * group.size()
        distributed.all_gather_object(everyone, mine, group)
        return everyone

    return group.rank(), group.size(), gather


def _over_mpi(rank: int, size: int, hosts: List[str], threads_per_rank: int, deadline: float) -> Group:
    launched = _native.launched()
    if not launched or launched[0] != "mpi":
        raise Error(f"the group's ranks are on several hosts ({', '.join(hosts)}); start them with mpirun: "
                    "other transports end at the host")
    if launched[1:3] != (rank, size):
        raise Unsupported(f"group: rank {rank} of {size} is rank {launched[1]} of {launched[2]} for mpirun; "
                          "across hosts the group must be all ranks, in mpirun's order")
    return init(threads_per_rank, deadline)


def init(threads_per_rank: int = 0, deadline: float = 0.0) -> Group:
    """The group of all ranks that mpirun, srun or torchrun has started; of one rank without a launcher. Every
    rank calls it; later calls give the same group.

    threads_per_rank: of each operation; 0 means cores / ranks.
    deadline: seconds without progress after which waiting ranks raise CommError; 0 means 600.
    """
    global _world
    if _world is not None:
        return _world
    launched = _native.launched()
    if launched is None:
        _world = Group(_native.start_threads(1, threads_per_rank, deadline)[0])
    elif launched[0] == "mpi":
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is not None and mpi.Is_initialized():
            raise Error("mpi4py has begun MPI, which may begin once: give Buffer(None, comm=MPI.COMM_WORLD), "
                        "or set mpi4py.rc.initialize = False first")
        _world = Group(_native.join_mpi(threads_per_rank, deadline))
    else:
        _world = _of_torchrun(launched, threads_per_rank, deadline)
    return _world


def _of_torchrun(launched: Any, threads_per_rank: int, deadline: float) -> Group:
    """torchrun listens at MASTER_PORT itself: the ranks meet elsewhere, and its store says where."""
    _, rank, ranks, address, port = launched
    if os.environ.get("LOCAL_WORLD_SIZE", str(ranks)) != str(ranks):
        raise Error(f"torchrun has started {ranks} ranks on several hosts; start them with mpirun: other "
                    "transports end at the host")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        place = (port, f"phalanx of {address}:{port}")
        mine = _native.Meeting(port) if rank == 0 else None
        return Group(_native.join_processes((rank, ranks), place, mine, threads_per_rank, deadline))
    from torch.distributed import PrefixStore, TCPStore

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"phalanx/{attempt}", TCPStore(address, port, ranks, False))
    mine = None
    if rank == 0:
        mine = _native.Meeting()
        store.set("place", f"{mine.port} {secrets.token_hex(16)}")
    where, key = store.get("place").decode().split()
    return Group(_native.join_processes((rank, ranks), (int(where), key), mine, threads_per_rank, deadline))


def run_threads(ranks: int, fn: Callable[[Group], T], *, threads_per_rank: int = 0,
                deadline: float = 0.0) -> List[T]:
    """Calls fn(group) on `ranks` threads, one for each rank of a world, and returns what they returned, by
    rank.

    The first exception of a rank ends the world: the others' calls raise CommError, and when all threads have
    ended, that first exception is raised here.

    threads_per_rank: of each operation; 0 means cores / ranks.
    deadline: seconds without progress after which waiting ranks raise CommError; 0 means 600.
    """
    natives = _native.start_threads(ranks, threads_per_rank, deadline)
    results: List[Any] = [None] * ranks
    failures: List[BaseException] = []

    def be_rank(rank: int) -> None:
        native = natives[rank]
        try:
            results[rank] = fn(Group(native))
        except BaseException as error:  # raised again by the caller
            failures.append(error)
            native.fail(f"rank {rank}: {type(error).__name__}: {error}")
        else:
            native.leave()

    threads = [threading.Thread(target=be_rank, args=(rank,), name=f"phalanx rank {rank}", daemon=True)
               for rank in range(ranks)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C
        for rank, native in enumerate(natives):
            native.fail(f"rank {rank}: interrupted")
        raise
    for native in natives:
        native.wait_ended(AT_EXIT_SECONDS)
    if failures:
        raise failures[0]
    return results


@atexit.register
def _leave_all() -> None:
    natives = list(_open)
    for native in natives:
        native.leave()
    end = time.monotonic() + AT_EXIT_SECONDS
    for native in natives:
        native.wait_ended(max(0.0, end - time.monotonic()))
