"""phalanx bench: tables for people, JSON for programs, one clear sentence for bad input."""
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

PHALANX = sys.argv[1]
SOURCE = pathlib.Path(sys.argv[2])

TINY = ["--set", "model.layers=2", "--set", "model.width=32", "--set", "model.context=16", "--steps", "2"]


def bench(*arguments):
    command = [PHALANX, "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


class Bench(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.text = self.directory / "text.txt"
        self.text.write_text("".join(random.choices("abcdefgh \n", k=2000)))

    def train(self, *arguments):
        return bench("train", SOURCE / "configs/nanogpt_cpu.toml", "--text", self.text, *TINY, *arguments)

    def rows(self, run):
        self.assertEqual(run.returncode, 0, run.stderr)
        report = json.loads(run.stdout)
        self.assertEqual(sorted(report), ["machine", "name", "rows"])
        return report["rows"]

    def test_train_parts_sum_to_the_step_and_memory_to_the_sum(self):
        rows = self.rows(self.train("--ranks", 2, "--json", "-"))
        times = {row["time"]: row for row in rows if "time" in row}
        parts = [row["achieved_ms"] for name, row in times.items() if name != "step"]
        self.assertAlmostEqual(sum(parts), times["step"]["achieved_ms"], places=6)
        for name in ("products", "attention", "elementwise", "optimizer", "communication"):
            self.assertGreater(times[name]["floor_ms"], 0, name)
        memory = {row["memory"]: row["bytes"] for row in rows if "memory" in row}
        parts = ("weights", "gradients", "optimizer", "batch", "activations", "working")
        self.assertEqual(sum(memory[name] for name in parts), memory["sum"])
        self.assertLess(abs(memory["peak, measured"] / memory["sum"] - 1), 0.15)
        summary = rows[-1]
        self.assertAlmostEqual(summary["tokens_per_s"] * summary["step_ms"], 1000 * 12 * 16, delta=1)

    def test_train_begins_with_a_checkpoint(self):
        out = self.directory / "out"
        sizes = TINY[:TINY.index("--steps")]
        command = [PHALANX, "train", SOURCE / "configs/nanogpt_cpu.toml", *sizes]
        for setting in (f"data.text={self.text}", f"train.out={out}", "train.steps=2", "train.batch=2",
                        "train.microbatch=2"):
            command += ["--set", setting]
        trained = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=100)
        self.assertEqual(trained.returncode, 0, trained.stderr)
        run = self.train("--resume", out, "--json", "-")
        self.rows(run)
        self.assertRegex(json.loads(run.stdout)["name"], f"after {out}/step-0*2")
        other = self.train("--resume", out, "--set", "model.width=64")
        self.assertNotEqual(other.returncode, 0)
        self.assertIn("its model.width is 32, this run's is 64", other.stderr)

    def test_train_prints_a_table_and_writes_the_same_rows(self):
        file = self.directory / "step.json"
        run = self.train("--json", file)
        self.assertEqual(run.returncode, 0, run.stderr)
        for row in json.loads(file.read_text())["rows"]:
            self.assertIn(next(iter(row)), run.stdout)
        self.assertIn("communication", run.stdout)

    def test_ops(self):
        rows = self.rows(bench("ops", "--tokens", 32, "--context", 16, "--width", 32, "--heads", 2,
                               "--mlp-width", 64, "--vocabulary", 50, "--json", "-"))
        self.assertIn("attention_backward", [row["op"] for row in rows])
        for row in rows:
            self.assertGreater(row["us"], 0)
            self.assertGreater(row["peak_percent"], 0)

    def test_collectives(self):
        names = {"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "barrier"}
        for transport in ("threads", "process"):
            rows = self.rows(bench("collectives", "--ranks", 2, "--transport", transport, "--json", "-"))
            self.assertEqual({row["operation"] for row in rows}, names)
            self.assertEqual(max(row["bytes"] for row in rows), 64 << 20)

    def test_ep(self):
        for transport, dtype in (("threads", "bf16"), ("process", "f32")):
            rows = self.rows(bench("ep", "--ranks", 2, "--tokens", 40, "--width", 64, "--top-k", 3,
                                   "--experts", 8, "--runs", 2, "--dtype", dtype, "--transport", transport,
                                   "--json", "-"))
            self.assertEqual([row["operation"] for row in rows], ["dispatch", "cached dispatch", "combine"])
            for row in rows:
                self.assertTrue(40 <= row["rows"] <= 2 * 2 * 40)
                self.assertGreater(row["logical_gb_per_s"], row["wire_gb_per_s"] / 2)
                self.assertGreater(row["copy_percent"], 0)

    def test_ep_low_latency(self):
        whole = ["dispatch", "combine", "copied combine"]
        for transport, dtype in (("threads", "bf16"), ("process", "f64")):
            rows = self.rows(bench("ep", "--mode", "low-latency", "--ranks", 2, "--tokens", 5, "--width", 64,
                                   "--top-k", 3, "--experts", 8, "--runs", 20, "--dtype", dtype,
                                   "--transport", transport, "--json", "-"))
            self.assertEqual([row["operation"] for row in rows], [f"{o}, send half" for o in whole] + whole)
            for row in rows:
                self.assertTrue(0 < row["median_us"] <= row["p99_us"])

    def test_bad_input_is_one_sentence(self):
        for run, words in (
                (bench("ep", "--top-k", 9, "--experts", 8), ["--top-k 9", "8"]),
                (bench("ep", "--ranks", 3, "--tokens", 4, "--width", 8, "--experts", 8), ["3", "8 experts"]),
                (bench("ops", "--tokens", 100, "--context", 64), ["100 tokens", "64"]),
                (bench("collectives", "--ranks", 0), ["--ranks"]),
                (self.train("--json", self.directory / "missing" / "x.json"), ["missing/x.json"]),
                (self.train("--set", "model.widht=4"), ["widht", "width"])):
            self.assertNotEqual(run.returncode, 0)
            for word in words:
                self.assertIn(word, run.stderr)

    def test_help_has_an_example(self):
        for command in ([], ["train"], ["ops"], ["collectives"], ["ep"]):
            self.assertRegex(bench(*command, "--help").stdout, r"Examples?:\n  phalanx bench")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
