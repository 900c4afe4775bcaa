"""phalanx place: the public example, JSON that agrees with itself, moves, the table, refusals."""
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import unittest

PHALANX = sys.argv[1]
EXAMPLE = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
           [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
PUBLISHED = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
             [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
KEYS = ["duplicates", "log2phy", "logcnt", "lower_bound", "max_over_mean", "ms", "phy2log"]


class Place(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.loads = self.file("loads.json", {"loads": EXAMPLE})

    def file(self, name, content):
        path = self.directory / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def place(self, *arguments, loads=None, replicas=16, gpus=8):
        command = [PHALANX, "place", "--loads", loads or self.loads, "--replicas", replicas, "--gpus", gpus]
        return subprocess.run(list(map(str, command + list(arguments))), capture_output=True, text=True,
                              timeout=60)

    def told(self, *arguments, **options):
        run = self.place(*arguments, "--json", "-", **options)
        self.assertEqual(run.returncode, 0, run.stderr)
        return json.loads(run.stdout)

    def refused(self, words, *arguments, **options):
        run = self.place(*arguments, **options)
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertEqual(run.stdout, "")
        for word in words:
            self.assertIn(word, run.stderr)

    def check(self, told, loads, slots):
        """The tables say the same, and the measures are those of the tables."""
        for l, weight in enumerate(loads):
            phy2log, counts = told["phy2log"][l], told["logcnt"][l]
            self.assertEqual(counts, [phy2log.count(e) for e in range(len(weight))])
            self.assertGreater(min(counts), 0)
            for e, listed in enumerate(told["log2phy"][l]):
                where = [i for i, expert in enumerate(phy2log) if expert == e]
                self.assertEqual(sorted(listed[:counts[e]]), where)
                self.assertEqual(set(listed[counts[e]:]), {-1} if len(listed) > counts[e] else set())
            gpus = [phy2log[i:i + slots] for i in range(0, len(phy2log), slots)]
            load = [sum(weight[e] / counts[e] for e in gpu) for gpu in gpus]
            self.assertAlmostEqual(told["max_over_mean"][l], max(load) * len(gpus) / sum(load), places=6)
            self.assertLessEqual(told["lower_bound"][l], told["max_over_mean"][l])
        doubled = sum(slots - len(set(layer[i:i + slots]))
                      for layer in told["phy2log"] for i in range(0, len(layer), slots))
        self.assertEqual(told["duplicates"], doubled)
        self.assertGreater(told["ms"], 0)

    def test_the_public_example(self):
        told = self.told("--groups", 4, "--nodes", 2, "--policy", "eplb")
        self.assertEqual(sorted(told), KEYS)
        self.assertEqual(told["phy2log"], PUBLISHED)
        self.check(told, EXAMPLE, 2)
        best = self.told("--groups", 4, "--nodes", 2)
        self.check(best, EXAMPLE, 2)
        self.assertEqual(best["duplicates"], 0)
        self.assertLessEqual(best["max_over_mean"], told["max_over_mean"])

    def test_moves(self):
        loads = [[random.lognormvariate(8, 1) for _ in range(64)] for _ in range(3)]
        later = [[w * random.uniform(0.7, 1.3) for w in layer] for layer in loads]
        sizes = {"replicas": 80, "gpus": 16}
        first = self.told(loads=self.file("loads.json", {"loads": loads}), **sizes)
        self.check(first, loads, 5)
        previous = self.file("previous.json", first)
        then = self.file("later.json", {"loads": later})
        worst = []
        for most in (0, 6, 40):
            told = self.told("--previous", previous, "--max-moves", most, loads=then, **sizes)
            self.assertEqual(sorted(told), sorted(KEYS + ["moved"]))
            self.check(told, later, 5)
            moved = sum(len(set(new[i:i + 5]) - set(old[i:i + 5]))
                        for new, old in zip(told["phy2log"], first["phy2log"]) for i in range(0, 80, 5))
            self.assertEqual(told["moved"], moved)
            self.assertLessEqual(moved, most)
            worst.append(sum(told["max_over_mean"]))
        self.assertEqual(self.told("--previous", previous, "--max-moves", 0, loads=then, **sizes)["phy2log"],
                         first["phy2log"])
        self.assertGreater(worst[0], worst[1])
        self.assertGreater(worst[1], worst[2])

    def test_a_table_and_a_file(self):
        file = self.directory / "out.json"
        run = self.place("--json", file)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.check(json.loads(file.read_text()), EXAMPLE, 2)
        run = self.place("--previous", file, "--groups", 4, "--nodes", 3)
        self.assertEqual(run.returncode, 0, run.stderr)
        for line in (r"policy .* moved .*", r"best .*", r"eplb .*", r"bound .*"):
            self.assertRegex(run.stdout, rf"(?m)^{line}$")
        self.assertRegex(run.stdout, re.compile(r"^best +\S+ +\S+ +0 +0 ", re.M))

    def test_refusals(self):
        self.refused(["replicas 8", "at least 12"], replicas=8)
        self.refused(["gpus 7", "replicas 16"], gpus=7)
        self.refused(["--max-moves"], "--max-moves", 3)
        self.refused(["--policy"], "--policy", "worst")
        for content, words in (
                ("{", ["not JSON"]), ({}, ["\"loads\" is missing"]), ({"loads": []}, ["at least one layer"]),
                ({"loads": 3}, ["a list is expected"]), ({"loads": [[]]}, ["layer 0: at least one expert"]),
                ({"loads": [[1] * 12, [1] * 11]}, ["layer 1", "11 experts"]),
                ({"loads": [[1] * 12, [1] * 11 + ["x"]]}, ["layer 1, expert 11", "a number"]),
                ({"loads": [[1] * 11 + [-1]]}, ["layer 0", "expert 11", "-1"]),
                ("{\"loads\": [[1, 1e39]]}", ["layer 0", "expert 1"])):
            bad = self.file("bad.json", content)
            self.refused([str(bad), *words], loads=bad)
        for content, words in (({"phy2log": [[0]]}, ["1 layers, the loads have 2"]),
                               ({"phy2log": [[0], [0]]}, ["layer 0 has 1 slots"]),
                               ({"phy2log": [[0] * 16] * 2}, ["expert 1 has no replica"]),
                               ({"phy2log": [[12] * 16] * 2}, ["no expert 12"])):
            bad = self.file("bad.json", content)
            self.refused([str(bad), *words], "--previous", bad)
            self.refused(["--max-moves"], "--policy", "eplb", "--previous", bad, "--max-moves", 1)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
