"""A rank that is killed or stopped in the middle of a step, under pipeline, tensor and expert parallelism and
on every transport: the run ends within the deadline and says which rank, in which operation of which group.
Ranks that were told different things refuse to start."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import unittest

from command import MOE, PHALANX, Case

MPIRUN = shutil.which("mpirun")
FOREVER = ["--json", "--set", "train.steps=1000000", "--set", "optimizer.decay=constant", *MOE]
LAYOUTS = ("pp=2,tp=2", "pp=2,dp=2,ep=2", "dp=4,ep=4")
WITHIN = 25  # seconds: a stopped rank counts as gone after 10


def ranks_below(process):
    """The pids of the command's processes that have no child of that name: the ranks."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()[1:]]
    parent = {int(pid): int(ppid) for pid, ppid, name in rows
              if name.strip() in ("phalanx", "mpirun", "prterun")}

    def is_below(pid):
        while pid in parent and pid != process.pid:
            pid = parent[pid]
        return pid == process.pid
    return sorted(pid for pid in parent if pid not in parent.values() and is_below(pid))


class Failure(Case):
    def command(self, *arguments):
        return [PHALANX, "train", self.config, *FOREVER, *arguments]

    def after_signal(self, command, sign):
        """Starts four ranks, signals one in the middle of the run; gives its pid and what was said."""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              start_new_session=True) as run:
            try:
                for text in run.stdout:
                    if '"step":20' in text:
                        break
                ranks = ranks_below(run)
                self.assertEqual(len(ranks), 4)
                os.kill(ranks[2], sign)
                start = time.monotonic()
                _, errors = run.communicate(timeout=60)
                self.assertLess(time.monotonic() - start, WITHIN)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(run.pid, signal.SIGKILL)
        self.assertNotEqual(run.returncode, 0)
        return ranks[2], errors

    def test_a_killed_process(self):
        for layout in LAYOUTS:
            with self.subTest(layout=layout):
                pid, errors = self.after_signal(self.command("--ranks", "4", "--layout", layout, "--set",
                                                             "parallel.transport=process"), signal.SIGKILL)
                self.assertRegex(errors, rf"rank \d \(pid {pid}.*\) (is gone|was killed)")

    def test_a_stopped_process(self):
        pid, errors = self.after_signal(self.command("--ranks", "4", "--layout", LAYOUTS[0], "--set",
                                                     "parallel.transport=process"), signal.SIGSTOP)
        self.assertRegex(errors, rf"rank \d \(pid {pid}.*no sign of life")

    @unittest.skipUnless(MPIRUN, "no mpirun")
    def test_mpi(self):
        start = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "4"]
        for layout, sign, says in ((LAYOUTS[0], signal.SIGKILL, r"is gone|exited on signal 9"),
                                   (LAYOUTS[1], signal.SIGSTOP, r"no sign of life")):
            with self.subTest(layout=layout):
                _, errors = self.after_signal([*start, *self.command("--layout", layout)], sign)
                self.assertRegex(errors, says)


class Differing(Case):
    def test_mpi(self):
        if not MPIRUN:
            self.skipTest("no mpirun")
        one = [PHALANX, "train", self.config]
        command = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "1", *one, ":", "-n", "1", *one,
                   "--set", "optimizer.lr=0.002"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("rank 1: optimizer.lr is 0.002 here and 0.01 on rank 0", done.stderr)

    @unittest.skipUnless(MPIRUN, "no mpirun")
    def test_ranks_that_the_processes_do_not_divide(self):
        start = [MPIRUN, "--allow-run-as-root", "--oversubscribe"]
        train = [PHALANX, "train", self.config]
        for command, says in (([*start, "-n", "2", *train, "--ranks", "3", "--set", "train.batch=12"],
                               "a multiple of the processes"),
                              ([*start, "-n", "1", *train, "--ranks", "2", ":", "-n", "1", *train, "--ranks",
                                "4"], "processes of 1 ranks and of 2")):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(says, done.stderr)

    def test_by_variables(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        runs = []
        for rank, setting in enumerate(("model.heads=4", "model.heads=2")):
            variables = dict(os.environ, RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                             MASTER_PORT=port)
            runs.append(subprocess.Popen([PHALANX, "train", self.config, "--set", setting], env=variables,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        for run in runs:
            _, errors = run.communicate(timeout=60)
            self.assertEqual(run.returncode, 1)
            self.assertTrue(re.search(r"rank 1: model.heads is 2 here and 4 on rank 0", errors), errors)


if __name__ == "__main__":
    unittest.main()
