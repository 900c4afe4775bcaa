"""phalanx bench: tables for people, JSON for programs, one clear sentence for bad input."""
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

PHALANX = sys.argv[1]
SOURCE = pathlib.Path(sys.argv[2])

MPIRUN = shutil.which("mpirun")
LIBRARIES = subprocess.run(["ldd", PHALANX], capture_output=True, text=True, check=False).stdout
UNDER_TSAN = "libtsan" in LIBRARIES  # OpenMPI is not instrumented

ROW = 1_000_000  # between the threads of a rank in a trace
NOTHING = 0.002  # µs: what rounding makes of times there

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
        for transport, dtype, sent, summed in (("threads", "bf16", 128, 128), ("process", "f64", 512, 512),
                                               ("threads", "e4m3", 64 + 4, 128)):
            rows = self.rows(bench("ep", "--mode", "low-latency", "--ranks", 2, "--tokens", 5, "--width", 64,
                                   "--top-k", 3, "--experts", 8, "--runs", 20, "--dtype", dtype,
                                   "--transport", transport, "--json", "-"))
            self.assertEqual([row["operation"] for row in rows], [f"{o}, send half" for o in whole] + whole)
            for row in rows:
                self.assertTrue(0 < row["us"] <= row["p99_us"])
            for row, size in zip(rows[len(whole):], (sent, summed, summed)):
                self.assertEqual(self.bytes_of(row, "logical_gb_per_s"), row["rows"] * size)

    def test_ep_is_one_table_of_all_combinations(self):
        lists = {"mode": ["throughput", "low-latency"], "ranks": [1, 2], "tokens": [3, 8], "width": [32],
                 "top_k": [1, 2], "experts": [2, 4], "dtype": ["f32", "bf16"]}
        options = [word for key, values in lists.items()
                   for word in ("--" + key.replace("_", "-"), ",".join(map(str, values)))]
        for transport in ("threads", "process"):
            rows = self.rows(bench("ep", *options, "--runs", 1, "--transport", transport, "--json", "-"))
            cases = list(dict.fromkeys(tuple(row[key] for key in lists) for row in rows))
            self.assertEqual(cases, list(itertools.product(*lists.values())))
            self.assertEqual(len(rows), len(cases) // 2 * (3 + 6))
            self.assertEqual(len({tuple(row) for row in rows}), 1)  # the same columns
        text = bench("ep", "--tokens", "4,8", "--width", 32, "--runs", 1).stdout
        self.assertEqual(len(text.splitlines()), 2 + 2 * 3)
        self.assertNotIn("p99_us", text)  # of no row here

    def bytes_of(self, row, rate):
        return round(row[rate] * row["us"] * 1e3)

    def test_ep_bytes_of_rows_with_scales(self):
        rows = self.rows(bench("ep", "--dtype", "bf16,e4m3", "--mode", "throughput,two-level", "--ranks", 2,
                               "--ranks-of-node", 1, "--tokens", 12, "--width", 160, "--top-k", 4,
                               "--experts", 4, "--runs", 1, "--json", "-"))
        self.assertEqual(len(rows), 12)
        for row in rows:  # all tokens go to both ranks
            size = {"bf16": 2 * 160, "e4m3": 160 + 2 * 4}[row["dtype"]]
            self.assertEqual(row["rows"], 2 * 2 * 12)
            self.assertEqual(self.bytes_of(row, "logical_gb_per_s"), 2 * 2 * 12 * size)
            numbers = {"dispatch": 2 * 12 * 4 * (8 + 4)}.get(row["operation"], 0)  # choices and weights
            wire = self.bytes_of(row, "wire_gb_per_s") - numbers
            if row["operation"] == "dispatch":
                self.assertLess(2 * 12 * size, wire)  # the plan
            else:
                self.assertEqual(wire, 2 * 12 * size)
            quantised = row["dtype"] == "e4m3" and row["operation"] == "combine"
            memory = 6 * 12 * 2 * 160 + 8 * 12 * size if quantised else 6 * 12 * size
            self.assertEqual(self.bytes_of(row, "memory_gb_per_s"), memory)

    def test_ep_two_levels_tell_the_bytes_of_both(self):
        rows = self.rows(bench("ep", "--mode", "two-level,throughput", "--ranks", 4, "--ranks-of-node", 2,
                               "--tokens", 10, "--width", 64, "--top-k", 8, "--experts", 8, "--runs", 1,
                               "--dtype", "f32", "--json", "-"))
        two_level, throughput = rows[:3], rows[3:]
        row = 10 * 4 * 64  # of a rank's tokens
        for operation in two_level[1:]:  # every token goes to the other node, and on to both of its ranks
            self.assertEqual(operation["between_bytes"], 4 * row)
            self.assertEqual(operation["inside_bytes"], 4 * 2 * row)
        for operation in throughput:
            self.assertIsNone(operation["between_bytes"])
            self.assertIsNone(operation["inside_bytes"])

    @unittest.skipUnless(MPIRUN and not UNDER_TSAN, "no mpirun, or ThreadSanitizer")
    def test_ep_takes_the_ranks_of_mpirun(self):
        for asked, ranks in (("1,3", 2), ("4", 4)):  # 4: threads, two of each process
            command = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "2", PHALANX, "bench", "ep",
                       "--ranks", asked, "--tokens", "4,8", "--width", "32", "--runs", "1", "--json", "-"]
            run = subprocess.run(command, capture_output=True, text=True, timeout=100,
                                 stdin=subprocess.DEVNULL,
                                 env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"))
            self.assertEqual([(row["ranks"], row["tokens"]) for row in self.rows(run)],
                             3 * [(ranks, 4)] + 3 * [(ranks, 8)])

    def parts(self, events, rank, name):
        """{("experts", 0): (begin, end)}: the parts of both microbatches within the span `name`."""
        spans = [(e, e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X"]
        ((begin, end),) = [(b, e) for span, b, e in spans if span["name"] == name and span["tid"] == rank]
        found = {}
        for span, b, e in spans:
            part = re.fullmatch(r"(dispatch|experts|combine) forward m([01])", span["name"])
            if part and span["tid"] % ROW == rank and begin <= b and e <= end + NOTHING:
                self.assertNotIn(part.groups(), found)
                self.assertEqual(span["tid"] // ROW, int(part[2] == "1" and name == "overlapped"))
                found[part[1], int(part[2])] = (b, e)
        self.assertEqual(len(found), 6)
        return found

    def test_ep_overlap_computes_while_the_other_microbatch_travels(self):
        for transport in ("threads", "process"):
            file = self.directory / "overlap.json"
            rows = self.rows(bench("ep", "--mode", "overlap", "--ranks", 2, "--tokens", 24, "--width", 32,
                                   "--expert-width", 48, "--top-k", 2, "--experts", 4, "--runs", 2,
                                   "--transport", transport, "--trace", file, "--json", "-"))
            us = {row["operation"]: row["us"] for row in rows}
            self.assertEqual(list(us), ["dispatch", "experts", "combine", "sequential", "overlapped"])
            hidden = (us["sequential"] - us["overlapped"]) / (2 * (us["dispatch"] + us["combine"]))
            self.assertAlmostEqual(rows[-1]["hidden_percent"], 100 * hidden, places=6)
            events = json.loads(file.read_text())["traceEvents"]
            for rank in (0, 1):
                self.check_overlap(events, rank)
            inspected = subprocess.run([PHALANX, "inspect", file, "--json"], capture_output=True, text=True,
                                       timeout=100)
            self.assertEqual(json.loads(inspected.stdout)["steps"], ["sequential", "overlapped"])

    def check_overlap(self, events, rank):
        one_by_one = self.parts(events, rank, "sequential")
        for m in (0, 1):
            experts = one_by_one["experts", m]
            for part in ("dispatch", "combine"):
                other = one_by_one[part, 1 - m]
                self.assertTrue(experts[1] <= other[0] + NOTHING or other[1] <= experts[0] + NOTHING)
        in_turns = self.parts(events, rank, "overlapped")
        for experts, other in ((in_turns["experts", 0], in_turns["dispatch", 1]),
                               (in_turns["experts", 1], in_turns["combine", 0])):
            self.assertLess(other[0], experts[0] + NOTHING)
            self.assertLess(experts[1], other[1] + NOTHING)
        for (part, m), (begin, end) in in_turns.items():
            products = [e for e in events if e["name"] == "grouped_matmul_nt" and e["tid"] % ROW == rank and
                        e["tid"] // ROW == m and begin <= e["ts"] <= end]
            self.assertEqual(len(products), 2 if part == "experts" else 0)
            flights = [e for e in events if e["name"].endswith(f"{part} forward m{m}") and
                       e.get("cat") == "communication" and e["tid"] % ROW == rank and begin <= e["ts"] <= end]
            self.assertEqual(bool(flights), part != "experts")

    def test_bad_input_is_one_sentence(self):
        for run, words in (
                (bench("ops", "--tokens", 100, "--context", 64), ["100 tokens", "64"]),
                (bench("collectives", "--ranks", 0), ["--ranks"]),
                (self.train("--json", self.directory / "missing" / "x.json"), ["missing/x.json"]),
                (self.train("--set", "model.widht=4"), ["widht", "width"])):
            self.assertNotEqual(run.returncode, 0)
            for word in words:
                self.assertIn(word, run.stderr)

    def test_ep_refuses_what_cannot_be_before_it_measures(self):
        for run, words in (
                (bench("ep", "--ranks", "2,3", "--experts", 8), ["3 ranks", "--experts 9"]),
                (bench("ep", "--top-k", "2,5,9", "--experts", "16,8"), ["--top-k 9", "smaller"]),
                (bench("ep", "--mode", "throughput,two-level"), ["needs --ranks-of-node"]),
                (bench("ep", "--mode", "two-level", "--ranks", "2,4", "--ranks-of-node", 4),
                 ["4", "2 ranks"]),
                (bench("ep", "--ranks-of-node", 2), ["--mode two-level"]),
                (bench("ep", "--mode", "overlap", "--dtype", "bf16"), ["overlap", "bf16", "f32"]),
                (bench("ep", "--expert-width", 8), ["--mode overlap"]),
                (bench("ep", "--trace", self.directory / "t.json"), ["--trace", "are 0"]),
                (bench("ep", "--mode", "overlap,throughput", "--tokens", "4,8", "--dtype", "f32", "--trace",
                       self.directory / "t.json"), ["--trace", "are 2"]),
                (bench("ep", "--mode", "overlap", "--trace", self.directory / "missing" / "t.json"),
                 ["missing/t.json"]),
                (bench("ep", "--tokens", "8,none"), ["--tokens", "none"])):
            self.assertNotEqual(run.returncode, 0)
            self.assertNotIn("measuring", run.stderr)
            for word in words:
                self.assertIn(word, run.stderr)

    def test_help_has_an_example(self):
        for command in ([], ["train"], ["ops"], ["collectives"], ["ep"]):
            self.assertRegex(bench(*command, "--help").stdout, r"Examples?:\n  phalanx bench")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
