"""Ctrl-C and SIGTERM: the run saves, says how to go on, and then goes on bit for bit."""

import itertools
import json
import os
import signal
import subprocess
import unittest

from command import DEADLINE, PHALANX, Case

FOREVER = ["--json", "--set", "train.steps=1000000", "--set", "optimizer.decay=constant", "--set",
           "model.dropout=0.1", "--set", "train.save_every=0"]


class Interrupt(Case):
    def run_until(self, last_step, sign, *arguments):
        """Trains until it has told of `last_step`, then signals; gives {step: line} and the errors."""
        with subprocess.Popen([PHALANX, "train", self.config, *FOREVER, *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
            lines = []
            try:
                for text in run.stdout:
                    lines.append(json.loads(text))
                    if lines[-1]["step"] == last_step:
                        os.killpg(run.pid, sign)  # as a terminal does
                _, errors = run.communicate(timeout=DEADLINE)
            finally:
                run.kill()
        self.assertEqual(run.returncode, 1, errors)
        steps = [line["step"] for line in lines]
        self.assertEqual(steps, list(range(steps[0], steps[0] + len(steps))))
        return {line["step"]: line for line in lines}, errors

    def check(self, sign, *arguments):
        out, straight = self.path("out"), self.path("straight")
        first, errors = self.run_until(25, sign, *arguments)
        saved = max(first) + 1
        self.assertRegex(errors, rf"saved {out}/step-{saved:08d}\nphalanx: [^\n]*--resume {out}\n\Z")
        second, _ = self.run_until(saved + 25, sign, "--resume", out, *arguments)
        self.assertEqual(min(second), saved)
        whole, _ = self.run_until(max(second), sign, "--set", "train.out=" + straight, *arguments)
        for step, key in itertools.product(range(max(second) + 1), ("loss", "grad_norm", "lr", "val_loss")):
            if key == "val_loss" and step in (saved - 1, max(second)):
                continue  # an interrupted run does not evaluate after its last step
            part = first if step < saved else second
            self.assertEqual(part[step].get(key), whole[step].get(key), f"{key} of step {step}")

    def test_ctrl_c(self):
        self.check(signal.SIGINT)

    def test_ctrl_c_with_processes_as_ranks(self):
        self.check(signal.SIGINT, "--ranks", "2", "--set", "parallel.transport=process")

    def test_termination_with_several_ranks(self):
        self.check(signal.SIGTERM, "--ranks", "2", "--schedule", "overlapped", "--set", "train.microbatch=2")


if __name__ == "__main__":
    unittest.main()
