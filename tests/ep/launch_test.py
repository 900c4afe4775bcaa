"""Dispatch and combine, of many tokens and of few, on ranks of mpirun, in each other's memory."""

import os
import random
import shutil
import subprocess
import sys
import unittest

BINARIES = os.path.dirname(sys.argv[1])  # arguments: the command, the source directory
del sys.argv[1:3]
PROGRAM = os.path.join(BINARIES, "test_ep_ranks")
MPIRUN = shutil.which("mpirun")
# OpenMPI is not instrumented: ThreadSanitizer sees half of what it does with its mutexes, and complains.
UNDER_TSAN = "libtsan" in subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=False).stdout


@unittest.skipUnless(MPIRUN and not UNDER_TSAN, "no mpirun, or ThreadSanitizer")
class Mpi(unittest.TestCase):
    def test_random_cases(self):
        for ranks, threads in ((2, 1), (3, 1), (6, 1), (2, 2), (3, 2)):
            seed = random.randrange(1 << 30)
            command = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), PROGRAM,
                       "threads", str(threads), str(seed)]
            # OpenMPI's plugins leak, and are gone before AddressSanitizer looks.
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  timeout=100, stdin=subprocess.DEVNULL, check=False,
                                  env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"))
            self.assertEqual(done.returncode, 0, f"{ranks} × {threads}, seed {seed}: {done.stdout}")


if __name__ == "__main__":
    unittest.main()
