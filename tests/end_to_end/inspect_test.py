"""phalanx inspect: a run, a checkpoint and a safetensors file, for people and machines."""

import json
import struct
import unittest

from command import Case


class Inspect(Case):
    def setUp(self):
        super().setUp()
        self.train("--ranks", "2")
        self.latest = self.path("out", "step-00000060")

    def test_a_run_lists_its_checkpoints_and_shows_the_latest(self):
        told = json.loads(self.succeed("inspect", self.path("out"), "--json", "--verify"))
        self.assertEqual((told["kind"], told["path"]), ("run", self.path("out")))
        self.assertEqual([(c["step"], c["complete"]) for c in told["checkpoints"]], [(40, True), (60, True)])
        self.check_checkpoint(told["latest"], "ok")
        text = self.succeed("inspect", self.path("out"))
        self.assertIn("step-00000040", text)
        self.assertIn("embedding.w", text)

    def test_a_checkpoint_by_itself(self):
        for path in (self.latest, self.latest + "/manifest.json"):
            self.check_checkpoint(json.loads(self.succeed("inspect", path, "--json")), "not checked")

    def check_checkpoint(self, told, status):
        self.assertEqual((told["kind"], told["step"], told["layout"]), ("checkpoint", 60, "dp=2"))
        tensors = {t["name"]: t for t in told["tensors"]}
        for prefix in ("", "optimizer.m.", "optimizer.v."):
            self.assertEqual(tensors[prefix + "layers.1.attention.q.w"]["shape"], [32, 32])
        self.assertEqual({p["status"] for t in told["tensors"] for p in t["pieces"]}, {status})
        self.assertEqual(told["totals"]["bytes"], sum(t["bytes"] for t in told["tensors"]))
        self.assertEqual(told["problems"], [])

    def test_a_safetensors_file_of_another_program(self):
        header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
        with open(self.path("model.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", len(header)) + header + bytes(24))
        told = json.loads(self.succeed("inspect", self.path("model.safetensors"), "--json"))
        self.assertEqual((told["kind"], told["totals"]["elements"]), ("safetensors", 6))

    def test_mistakes(self):
        self.refuse(["inspect", self.path("missing")], "missing", "no such file")
        self.refuse(["inspect", self.path("text.txt")], "text.txt", "not a safetensors file")
        self.refuse(["inspect", self.path("config.toml"), "--verfy"], '"--verfy"', "--verify")


if __name__ == "__main__":
    unittest.main()
