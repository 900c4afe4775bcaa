"""Dispatch and combine on two levels, between two hosts of two ranks each: processes, or threads of one."""

import os
import random
import sys
import unittest

BINARIES = os.path.dirname(sys.argv[1])  # arguments: the command, the source directory
sys.path.append(os.path.join(sys.argv[2], "tests"))
del sys.argv[1:3]
PROGRAM = os.path.join(BINARIES, "test_ep_ranks")

from two_hosts import Hosts, why_not  # noqa: E402

ROUNDS = 60


@unittest.skipIf(why_not(PROGRAM), why_not(PROGRAM))
class TwoHosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.hosts = Hosts()
        cls.addClassCleanup(cls.hosts.close)

    def start(self, *arguments, threads=1):
        """What the program says, and the bytes on the cable meanwhile."""
        before = self.hosts.sent()
        done = self.hosts.mpirun(2 // threads, PROGRAM, "threads", str(threads), *arguments)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout, self.hosts.sent() - before

    def test_rows_sums_and_counted_bytes(self):
        for threads in (1, 2):
            for _ in range(3):
                self.start(str(random.randrange(1 << 30)), "nodes", "2", threads=threads)

    def test_bytes_on_the_cable(self):
        """What launching sends is taken away; what is left is the formula, and the headers of TCP."""
        for threads in (1, 2):
            figures = {}
            for way in ((), ("flat",)):
                _, launching = self.start("traffic", "2", "0", *way, threads=threads)
                formula, sent = self.start("traffic", "2", str(ROUNDS), *way, threads=threads)
                figures[way] = int(formula), sent - launching
                self.assertGreater(figures[way][1], 0.99 * figures[way][0], figures)
                self.assertLess(figures[way][1], 1.12 * figures[way][0], figures)
            self.assertLess(figures[()][1], 0.75 * figures[("flat",)][1], figures)


if __name__ == "__main__":
    unittest.main()
