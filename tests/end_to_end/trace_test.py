"""The timeline of a run: on every transport, cut short by Ctrl-C, refused where it cannot be written."""

import json
import os
import re
import shutil
import signal
import subprocess
import unittest

from command import DEADLINE, PHALANX, Case

MPIRUN = shutil.which("mpirun")
LIBRARIES = subprocess.run(["ldd", PHALANX], capture_output=True, text=True, check=False).stdout
UNDER_TSAN = "libtsan" in LIBRARIES  # OpenMPI is not instrumented
PIPELINE = ["--layout", "pp=2", "--schedule", "zb-h1", "--set", "train.microbatch=2", "--set",
            "train.steps=8"]


class Trace(Case):
    def events(self):
        with open(self.path("trace.json"), encoding="utf-8") as f:
            return json.load(f)["traceEvents"]

    def steps(self):
        """{rank: the names of its training steps}."""
        found = {}
        for e in self.events():
            if e["ph"] == "X" and re.fullmatch(r"step \d+", e["name"]):
                found.setdefault(e["tid"], []).append(e["name"])
        return found

    def check_pipeline(self, transport):
        with self.subTest(transport):
            self.assertEqual(self.steps(), {rank: ["step 2", "step 3", "step 4"] for rank in (0, 1)})
            names = {(e["tid"], e["name"]) for e in self.events() if e["ph"] == "X"}
            for m in range(4):
                for rank in (0, 1):
                    layer = f"layers.{rank}"
                    for wanted in ("F m{} chunk 0", "I m{} chunk 0", "W m{} chunk 0", layer +
                                   " attention forward m{}", layer + " mlp backward m{}", layer +
                                   " mlp weight gradient m{}"):
                        self.assertIn((rank, wanted.format(m)), names)
            os.remove(self.path("trace.json"))

    def test_every_transport(self):
        for transport in ("threads", "process"):
            self.train("--trace", "trace.json", *PIPELINE, "--set", "parallel.transport=" + transport)
            self.check_pipeline(transport)
        if MPIRUN and not UNDER_TSAN:
            command = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "2", PHALANX, "train",
                       self.config, "--trace", "trace.json", *PIPELINE]
            mpi = subprocess.run(command, cwd=self.folder, timeout=DEADLINE, stdin=subprocess.DEVNULL,
                                 env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"), capture_output=True,
                                 text=True, check=False)
            self.assertEqual(mpi.returncode, 0, mpi.stderr)
            self.check_pipeline("mpi")

    def test_the_steps_asked_for_also_of_a_resumed_run(self):
        self.train("--trace", "trace.json", "--trace-steps", "0:1")
        self.assertEqual(self.steps(), {0: ["step 0"]})
        self.train("--trace", "trace.json", "--trace-steps", "1:2", "--resume",
                   self.path("out", "step-00000040"))
        self.assertEqual(self.steps(), {0: ["step 41", "step 42"]})
        self.train("--trace", "trace.json", "--trace-steps", "58:9")  # to the end of the run
        self.assertEqual(self.steps(), {0: ["step 58", "step 59"]})

    def test_ctrl_c_leaves_what_was_traced(self):
        command = [PHALANX, "train", self.config, "--json", "--trace", "trace.json", "--trace-steps",
                   "2:1000000", "--set", "train.steps=1000000", "--set", "optimizer.decay=constant"]
        with subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, start_new_session=True) as run:
            try:
                for text in run.stdout:
                    if json.loads(text)["step"] == 6:
                        os.killpg(run.pid, signal.SIGINT)
                _, errors = run.communicate(timeout=DEADLINE)
            finally:
                run.kill()
        self.assertEqual(run.returncode, 1, errors)
        self.assertIn("wrote trace.json", errors)
        self.assertEqual(self.steps()[0][:4], ["step 2", "step 3", "step 4", "step 5"])

    def test_inspect(self):
        self.train("--trace", "trace.json", *PIPELINE)
        told = json.loads(self.succeed("inspect", "trace.json", "--json"))
        self.assertEqual((told["kind"], told["steps"]), ("trace", ["step 2", "step 3", "step 4"]))
        self.assertEqual([r["name"] for r in told["ranks"]], ["rank 0 pp=0", "rank 1 pp=1"])
        events = self.events()
        for rank, r in enumerate(told["ranks"]):
            self.assertAlmostEqual(sum(r["parts"].values()), r["seconds"], delta=1e-6)
            self.assertLessEqual({"forward", "backward", "weight gradient", "wait", "update"},
                                 set(r["parts"]))
            bubble = 0
            for step in told["steps"]:
                (whole,) = [e for e in events if e["name"] == step and e.get("tid") == rank]
                spans = [e for e in events if e["ph"] == "X" and "op" in e["args"] and
                         self.step_of(e, events) == step]
                bubble += max(e["ts"] + e["dur"] for e in spans) - min(e["ts"] for e in spans)
                bubble -= sum(e["dur"] for e in spans if e["tid"] == rank)
                self.assertLess(bubble, 1e6 * r["seconds"] + whole["dur"])
            self.assertAlmostEqual(r["bubble"], 1e-6 * bubble, delta=1e-6)
        text = self.succeed("inspect", "trace.json")
        self.assertRegex(text, r"(?m)^rank 1 pp=1$")
        self.assertRegex(text, r"(?m)^  bubble \(within the above\) +\d+\.\d+ s +\d+\.\d %$")

    def step_of(self, event, events):
        (name,) = [e["name"] for e in events if e["name"].startswith("step ") and e["tid"] == event["tid"] and
                   e["ts"] <= event["ts"] and event["ts"] + event["dur"] <= e["ts"] + e["dur"] + 0.002]
        return name

    def test_the_report_draws_the_pipeline(self):
        self.train("--report", "report.html", *PIPELINE)
        with open(self.path("report.html"), encoding="utf-8") as f:
            text = f.read()
        self.assertEqual(re.findall(r'<g data-rank="(\d)">', text), ["0", "1"])
        shown = {name: float(ms) for name, ms in re.findall(
            r"<td>(measured|simulated|by formula)[^<]*</td><td>([\d.]+)</td>", text)}
        self.assertEqual(set(shown), {"measured", "simulated", "by formula"})
        # Messages take time; but for a rank's clock the simulation is then never longer.
        self.assertLessEqual(shown["simulated"], shown["measured"] + 0.002)

    def test_mistakes(self):
        self.refuse(["train", self.config, "--trace", "no/trace.json"], "no/trace.json", "No such file")
        self.refuse(["train", self.config, "--trace", self.folder], self.folder, "Is a directory")
        for steps in ("", "2", "2:", ":3", "2:0", "-1:2", "2:3x", "a:b"):
            self.refuse(["train", self.config, "--trace", "t.json", "--trace-steps", steps],
                        f'--trace-steps is "{steps}"')
        result = self.run_command("train", self.config, "--trace", "t.json", "--trace-steps", "60:1")
        self.assertEqual(result.returncode, 1)
        self.assertIn("no step to trace: the run has 60 steps", result.stderr)
        self.assertNotIn("step 1/60", result.stderr)
        full = self.run_command("train", self.config, "--trace", "/dev/full")
        self.assertEqual(full.returncode, 1)
        self.assertIn("/dev/full: No space left", full.stderr)
        self.assertIn("step-00000060", full.stderr)  # the run went on


if __name__ == "__main__":
    unittest.main()
