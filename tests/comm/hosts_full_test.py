"""Ranks of one MPI world on two hosts: every collective, and every way of failing."""

import os
import re
import sys
import time
import unittest

BINARIES = os.path.dirname(sys.argv[1])  # arguments: the command, the source directory
sys.path.append(os.path.join(sys.argv[2], "tests"))
del sys.argv[1:3]
PROGRAM = os.path.join(BINARIES, "test_comm_ranks")

from two_hosts import NAMES, Hosts, why_not  # noqa: E402


@unittest.skipIf(why_not(PROGRAM), why_not(PROGRAM))
class TwoHosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.hosts = Hosts()
        cls.addClassCleanup(cls.hosts.close)

    def start(self, ranks_a_host, *arguments):
        """The exit status, all that was said, and the seconds it took."""
        begin = time.monotonic()
        done = self.hosts.mpirun(ranks_a_host, PROGRAM, *arguments)
        return done.returncode, done.stdout + done.stderr, time.monotonic() - begin

    def test_every_collective(self):
        for ranks in (1, 2, 3):
            status, text, _ = self.start(ranks, "collectives")
            self.assertEqual(status, 0, text)

    def test_memory_is_shared_within_a_host(self):
        status, text, _ = self.start(3, "hosts")
        self.assertEqual(status, 0, text)

    def test_one_process_of_several_ranks_a_host(self):
        for threads in (2, 3):
            for scenario in ("collectives", "hosts"):
                status, text, _ = self.start(1, scenario, "-1", str(threads))
                self.assertEqual(status, 0, text)

    def expect(self, culprit, how, pattern, survivors=3):
        status, text, seconds = self.start(2, how, str(culprit))
        self.assertNotEqual(status, 0)
        reports = re.findall(r"^pid \d+: (.*)$", text, re.MULTILINE)
        self.assertGreaterEqual(len([r for r in reports if re.search(pattern, r)]), survivors, text)
        self.assertLess(seconds, 30)

    # OpenMPI ends the rank beside a killed one if that was reading its memory just then.
    def test_a_rank_killed_on_the_other_host(self):
        self.expect(2, "killed", rf"rank 2 \(pid \d+ on host {NAMES[1]}\) is gone.*all_reduce",
                    survivors=2)

    def test_rank_0_killed(self):
        self.expect(0, "killed", r"rank 0.* is gone.*all_reduce", survivors=2)

    def test_a_rank_stopped_on_the_other_host(self):
        self.expect(3, "stopped", rf"rank 3 \(pid \d+ on host {NAMES[1]}.*no sign of life.*all_reduce")

    def test_calls_that_differ_between_hosts(self):
        self.expect(2, "differs", r"calls differ.*(all_reduce.*all_gather|all_gather.*all_reduce)")


if __name__ == "__main__":
    unittest.main()
