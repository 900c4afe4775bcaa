"""phalanx schedule: the timeline, JSON, the picture, and refusals."""

import json
import unittest
from xml.etree import ElementTree

from command import Case

NAMES = ("sequential", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe", "dualpipe-v")
FIELDS = {"name", "ranks", "chunks_per_rank", "microbatches", "slices", "steps", "simulated",
          "formula_bubble", "deadlock"}
SIMULATED = {"F", "B", "W", "FB", "makespan", "idle", "peak_live"}
SVG = "{http://www.w3.org/2000/svg}"


def of_four(name):
    return ["schedule", name, "--stages", "4", "--microbatches", "8"]


class Schedule(Case):
    def told(self, *arguments):
        return json.loads(self.succeed(*arguments, "--json", "-"))

    def test_json_of_every_schedule(self):
        for name in NAMES:
            told = self.told(*of_four(name))
            self.assertLessEqual(FIELDS, set(told))
            self.assertLessEqual(SIMULATED, set(told["simulated"]))
            self.assertEqual((told["name"], told["ranks"], told["microbatches"]), (name, 4, 8))
            self.assertIsNone(told["deadlock"])
            self.assertEqual(told["simulated"]["idle"], [told["formula_bubble"]] * 4)
            self.assertEqual(len(told["steps"]), 4)
            for steps in told["steps"]:
                self.count_passes(steps, 8 if name == "dualpipe" else 8 * told["chunks_per_rank"])

    def count_passes(self, steps, passes):
        """Each microbatch forward and backward once through each chunk; W as often as I, and later."""
        forward = [(s["chunk"], s["microbatch"]) for s in steps if s["op"] in ("F", "FB")]
        backward = [(s["chunk"], s["microbatch"]) for s in steps if s["op"] in ("B", "I")]
        backward += [(s["b_chunk"], s["b_microbatch"]) for s in steps if s["op"] == "FB"]
        self.assertEqual(len(forward), passes)
        self.assertEqual(len(set(forward)), passes)
        self.assertEqual(sorted(forward), sorted(backward))
        put_off = [[(s["chunk"], s["microbatch"]) for s in steps if s["op"] == op] for op in "IW"]
        self.assertEqual(sorted(put_off[0]), sorted(put_off[1]))

    def test_chunks_and_times(self):
        told = self.told(*of_four("interleaved"), "--chunks", "3")
        self.assertEqual(told["chunks_per_rank"], 3)
        self.assertEqual(told["simulated"]["peak_live"], [15, 13, 11, 9])
        told = self.told(*of_four("dualpipe"), "--times", "1,2,1,2.5")
        self.assertEqual(told["simulated"]["FB"], 2.5)
        self.assertEqual(told["formula_bubble"], 1.5)
        self.assertEqual(max(told["simulated"]["idle"]), 1.5)

    def test_slices(self):
        for name in NAMES:
            told = self.told(*of_four(name), "--slices", "3")
            self.assertEqual((told["microbatches"], told["slices"]), (24, 3))
            self.assertIsNone(told["deadlock"])
            for steps in told["steps"]:
                self.count_passes(steps, 24 if name == "dualpipe" else 24 * told["chunks_per_rank"])
        told = self.told(*of_four("1f1b"), "--slices", "3")
        self.assertEqual(told["simulated"]["peak_live"], [6, 5, 4, 3])
        self.assertEqual(told["formula_bubble"], 3)
        text = self.succeed("schedule", "1f1b", "--stages", "2", "--microbatches", "1", "--slices", "2")
        self.assertIn("rank 0  F0.0 F0.1 ...............B0.1      B0.0      \n", text)
        self.assertRegex(text, "of 2 slices; .*F3.0: slice 0 of microbatch 3\n")

    def test_the_timeline(self):
        text = self.succeed("schedule", "1f1b", "--stages", "2", "--microbatches", "2")
        self.assertIn("rank 0  F0 F1 ......B0    ...B1    \n", text)
        self.assertIn("rank 1  ...F0 B0    F1 B1    ......\n", text)
        self.assertRegex(text, r"makespan 9; bubble 3 \(33\.3 %\), by formula 3; no deadlock\n\Z")

    def test_a_timeline_too_wide_for_text(self):
        text = self.succeed(*of_four("1f1b"), "--times", "1,2,1e-9,3")
        self.assertIn("rank 0  F0", text)  # no W in its steps
        text = self.succeed(*of_four("zb-h1"), "--times", "1,2,1e-9,3")
        self.assertIn("--svg", text)
        self.assertIn("makespan", text)

    def test_the_picture(self):
        for name in NAMES:
            path = self.path(f"{name}.svg")
            self.assertEqual(self.succeed(*of_four(name), "--svg", path), "")
            with open(path, encoding="utf-8") as f:
                text = f.read()
            root = ElementTree.fromstring(text)
            self.assertEqual(root.tag, SVG + "svg")
            self.assertNotIn("script", text)
            self.assertEqual(text.count("http"), 1)  # the namespace: nothing is fetched
            told = self.told(*of_four(name))
            steps = [g for g in root.iter(SVG + "g") if g.get("class") == "step"]
            self.assertEqual(len(steps), sum(len(rank) for rank in told["steps"]))
            rows = [r for r in root.iter(SVG + "rect") if r.get("class") == "idle"]
            self.assertEqual(len(rows), 4)

    def test_files(self):
        self.succeed(*of_four("zb-v"), "--json", self.path("zb-v.json"), "--svg", self.path("zb-v.svg"))
        with open(self.path("zb-v.json"), encoding="utf-8") as f:
            self.assertEqual(json.load(f), self.told(*of_four("zb-v")))

    def test_mistakes(self):
        for arguments, says in (
                (of_four("zbv"), ["\"zbv\"", "nearest is zb-v"]),
                (["schedule", "dualpipe", "--stages", "8", "--microbatches", "10"], ["10", "at least 16"]),
                (["schedule", "dualpipe", "--stages", "3", "--microbatches", "10"], ["3 stages", "even"]),
                (["schedule", "dualpipe-v", "--stages", "4", "--microbatches", "7"], ["at least 8"]),
                (["schedule", "1f1b", "--stages", "4", "--microbatches", "0"], ["at least 1"]),
                (["schedule", "1f1b", "--stages", "4"], ["--microbatches"]),
                (["schedule", "--stages", "4", "--microbatches", "4"], ["name"]),
                ([*of_four("1f1b"), "--chunks", "2"], ["1f1b", "1 chunk"]),
                ([*of_four("interleaved"), "--chunks", "0"], ["--chunks"]),
                ([*of_four("1f1b"), "--times", "1,2"], ["--times", "\"1,2\"", "F,B,W,FB"]),
                ([*of_four("1f1b"), "--times", "1,2,1,3,"], ["--times"]),
                ([*of_four("1f1b"), "--times", "1,2,x,3"], ["--times"]),
                ([*of_four("1f1b"), "--times", "1,2,-1,3"], ["--times"]),
                ([*of_four("1f1b"), "--times", "1,2,2,3"], ["W (2)", "B (2)"]),
                ([*of_four("1f1b"), "--svg", self.path("missing", "file.svg")], ["file.svg"]),
                ([*of_four("1f1b"), "--json", self.path("missing", "file.json")], ["file.json"])):
            self.refuse(arguments, *says)


if __name__ == "__main__":
    unittest.main()
