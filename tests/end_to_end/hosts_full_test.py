"""Training over MPI on two hosts: with every axis between hosts, or within one, the losses of threads."""

import os
import sys
import unittest

from command import MOE, PHALANX, SOURCE, Case, json_lines

sys.path.append(os.path.join(SOURCE, "tests"))

from two_hosts import Hosts, why_not  # noqa: E402

SHORT = ["train.dtype=f64", "train.microbatch=1", "train.steps=6", "train.eval_batches=2"]

# Ranks 0 and 1 are one host, 2 and 3 the other (phalanx/comm/mesh.h: the order of the axes).
HYBRIDS = {
    "pp between hosts, tp within": ["parallel.layout=pp=2,tp=2"],
    "dp between, tp within": ["parallel.layout=dp=2,tp=2", "parallel.zero=1"],
    "dp between, a ring within": ["parallel.layout=dp=2,cp=2", "parallel.ulysses=1", "parallel.zero=3"],
    "pp between, dp within": ["parallel.layout=pp=2,dp=2", "train.schedule=zb-v", "parallel.zero=2",
                              "model.layers=4"],
    "tp over both": ["parallel.layout=tp=4"],
    "Ulysses over both": ["parallel.layout=cp=4", "parallel.ulysses=4"],
    "experts over both": [*MOE[1::2], "parallel.layout=dp=4,ep=4"],
    "experts over both, on two levels": [*MOE[1::2], "parallel.layout=dp=4,ep=4", "moe.two_level=true"],
    "pp between, experts within": [*MOE[1::2], "parallel.layout=pp=2,dp=2,ep=2"],
}


@unittest.skipIf(why_not(PHALANX), why_not(PHALANX))
class TwoHosts(Case):
    def setUp(self):
        super().setUp()
        self.hosts = Hosts()
        self.addCleanup(self.hosts.close)

    def test_hybrids_have_the_losses_of_threads(self):
        for name, settings in HYBRIDS.items():
            with self.subTest(name):
                words = [w for s in [*SHORT, *settings] for w in ("--set", s)]
                threads = self.train("--ranks", "4", *words, "--set", "parallel.transport=threads")
                self.check_as(threads, 2, *words)
                self.check_as(threads, 1, "--ranks", "4", *words)  # two threads of each process

    def check_as(self, threads, processes_a_host, *words):
        result = self.hosts.mpirun(processes_a_host, PHALANX, "train", self.config, "--json", *words)
        self.assertEqual(result.returncode, 0, result.stderr)
        mpi = json_lines(result.stdout)
        self.assertEqual(len(mpi), len(threads))
        for ours, theirs in zip(mpi, threads):
            self.assertEqual(ours["step"], theirs["step"])
            for figure in ("loss", "grad_norm", "val_loss"):
                if figure in theirs:
                    self.assertAlmostEqual(ours[figure], theirs[figure], delta=1e-12)


if __name__ == "__main__":
    unittest.main()
