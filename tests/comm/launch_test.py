"""Ranks that a launcher has started: mpirun, and torchrun's variables. Every collective is right; whoever
dies, stops, throws, ends, comes late or calls something else is named by every survivor within seconds."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import unittest

BINARIES = os.path.dirname(sys.argv[1])  # arguments: the command, the source directory
del sys.argv[1:3]
PROGRAM = os.path.join(BINARIES, "test_comm_ranks")
MPIRUN = shutil.which("mpirun")
# OpenMPI is not instrumented: ThreadSanitizer sees half of what it does with its mutexes, and complains.
UNDER_TSAN = "libtsan" in subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=False).stdout


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class World:
    """What became of a world: exit statuses by rank (of mpirun alone, under it), and what all ranks said."""

    def __init__(self, statuses, text, seconds):
        self.statuses, self.text, self.seconds = statuses, text, seconds
        self.reports = re.findall(r"^pid \d+: (.*)$", text, re.MULTILINE)


def mpirun(ranks, *arguments):
    # Seconds that ranks live on when one has ended. Silence is noticed by each on its own: on a busy machine
    # not within the 1 s that is mpirun's default.
    patience = "5" if "stopped" in arguments else "1"
    command = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "--mca", "odls_base_sigkill_timeout",
               patience, "-n", str(ranks), PROGRAM, *arguments]
    # OpenMPI's plugins leak, and are gone before AddressSanitizer looks: no suppression can name them.
    variables = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, env=variables, check=False)
    return World([done.returncode], done.stdout, time.monotonic() - start)


def by_variables(ranks, *arguments):
    port = str(free_port())
    start = time.monotonic()
    processes = []
    for rank in range(ranks):
        variables = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                         MASTER_PORT=port)
        processes.append(subprocess.Popen([PROGRAM, *arguments], env=variables, stdout=subprocess.PIPE,
                                          stderr=subprocess.STDOUT, text=True))
    text, deadline = "", start + 60
    stopped = int(arguments[1]) if arguments[0] == "stopped" else None
    for rank, process in enumerate(processes):
        if rank != stopped:
            text += process.communicate(timeout=max(1, deadline - time.monotonic()))[0]
    seconds = time.monotonic() - start
    if stopped is not None:
        processes[stopped].kill()
        processes[stopped].communicate()
    return World([p.returncode for p in processes], text, seconds)


class Launched:
    """The same for every launcher; `start` runs the program."""

    def test_every_collective(self):
        for ranks in self.sizes:
            world = self.start(ranks, "collectives")
            self.assertEqual(set(world.statuses), {0}, f"{ranks} ranks: {world.text}")

    def test_shared_memory(self):
        for ranks in self.sizes:
            world = self.start(ranks, "shared")
            self.assertEqual(set(world.statuses), {0}, f"{ranks} ranks: {world.text}")

    def expect(self, world, survivors, pattern):
        self.assertNotEqual(max(world.statuses), 0)
        named = [r for r in world.reports if re.search(pattern, r)]
        self.assertGreaterEqual(len(named), survivors, f"wanted {pattern}; they said:\n{world.text}")
        self.assertLess(world.seconds, 20)

    def test_a_killed_rank(self):
        self.expect(self.start(3, "killed", "1"), 2, r"rank 1 \(pid \d+ on host .*\) is gone.*all_reduce")

    def test_a_rank_killed_before_it_unshares(self):
        before = os.listdir("/dev/shm")
        self.expect(self.start(3, "shared", "1"), 2, r"rank 1 \(pid \d+ on host .*\) is gone.*unshare")
        self.assertEqual([f for f in os.listdir("/dev/shm") if "phalanx" in f and f not in before], [])

    def test_killed_rank_0(self):
        self.expect(self.start(3, "killed", "0"), 2, r"rank 0.* is gone.*all_reduce")

    def test_a_stopped_rank(self):
        self.expect(self.start(3, "stopped", "2"), 2, r"rank 2 \(pid \d+.*no sign of life.*all_reduce")

    def test_stopped_rank_0(self):
        self.expect(self.start(3, "stopped", "0"), 2, r"rank 0.*no sign of life.*all_reduce")

    def test_a_rank_that_throws(self):
        self.expect(self.start(3, "throws", "2"), 2, r"rank 2: disk full.*all_reduce")

    def test_calls_that_differ(self):
        self.expect(self.start(3, "differs", "1"), 2,
                    r"calls differ.*(all_reduce\(f32\[5000\], sum\).*all_gather\(f32\[7\]\)"
                    r"|all_gather\(f32\[7\]\).*all_reduce\(f32\[5000\], sum\))")

    def test_a_rank_that_ends(self):
        self.expect(self.start(3, "ends", "1"), 2,
                    r"rank 1 has ended without calling all_reduce.*last operation")

    def test_a_late_rank(self):
        self.expect(self.start(2, "late", "1"), 1,
                    r"rank 0 waited 2.\d s in all_reduce.*rank 1 never called it")


@unittest.skipUnless(MPIRUN and not UNDER_TSAN, "no mpirun, or ThreadSanitizer")
class Mpi(Launched, unittest.TestCase):
    sizes = (2, 3, 4, 8)

    def start(self, *arguments):
        return mpirun(*arguments)


@unittest.skipUnless(MPIRUN and not UNDER_TSAN, "no mpirun, or ThreadSanitizer")
class MpiThreads(unittest.TestCase):
    """Two processes of two ranks each, which are threads; one that is gone takes the other with it."""

    def test_all_is_right(self):
        for processes, threads in ((2, 2), (3, 2)):
            for scenario in ("collectives", "shared"):
                world = mpirun(processes, scenario, "-1", str(threads))
                self.assertEqual(world.statuses, [0], f"{processes} × {threads}, {scenario}: {world.text}")

    def expect(self, scenario, rank, pattern):
        world = mpirun(2, scenario, str(rank), "2")
        self.assertNotEqual(world.statuses, [0])
        self.assertTrue(any(re.search(pattern, r) for r in world.reports), f"{pattern}: {world.text}")
        self.assertLess(world.seconds, 20)

    def test_whoever_fails_is_named(self):
        self.expect("killed", 3, r"rank [23] \(pid \d+ on host .*\) is gone.*all_reduce")
        self.expect("throws", 3, r"rank 3: disk full.*all_reduce")
        self.expect("differs", 1, r"calls differ")
        self.expect("ends", 1, r"rank 1 has ended without calling all_reduce")
        self.expect("late", 1, r"waited 2.\d s in all_reduce.*rank 1 never called it")


class Variables(Launched, unittest.TestCase):
    sizes = (2, 5)

    def start(self, *arguments):
        return by_variables(*arguments)

    def test_a_rank_too_many(self):
        port = str(free_port())
        variables = dict(os.environ, RANK="5", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        first = subprocess.Popen([PROGRAM, "collectives"], env=dict(variables, RANK="0"),
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stranger = subprocess.run([PROGRAM, "collectives"], env=variables, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
        text = first.communicate(timeout=60)[0]
        self.assertRegex(text, r"rank 5 \(pid .*came to a world of 2 ranks")
        self.assertNotEqual(stranger.returncode, 0)
        self.assertNotEqual(first.returncode, 0)

    def test_a_variable_that_is_no_number(self):
        variables = dict(os.environ, RANK="one", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
        done = subprocess.run([PROGRAM, "collectives"], env=variables, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
        self.assertIn('the launcher\'s variable RANK is "one"; it must be a number', done.stdout)


if __name__ == "__main__":
    unittest.main()
