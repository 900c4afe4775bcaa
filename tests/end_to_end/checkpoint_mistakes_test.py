"""Checkpoints that are damaged or of another run: refused, or passed over for the last complete one."""

import glob
import os
import random
import unittest

from command import Case


class CheckpointMistakes(Case):
    def setUp(self):
        super().setUp()
        self.train()
        self.latest = self.path("out", "step-00000060")
        self.before = self.path("out", "step-00000040")
        self.shard = glob.glob(os.path.join(self.latest, "*.safetensors"))[0]

    def refuse_everywhere(self, path, *says):
        self.refuse(["train", self.config, "--resume", path], *says)
        self.refuse(["generate", "--model", path, "--prompt", "the "], *says)

    def pass_over(self, *says):
        """The directory stands for the checkpoint before, and both commands say so."""
        commands = (["generate", "--model", self.path("out"), "--prompt", "the ", "--tokens", "1"],
                    ["train", self.config, "--json", "--resume", self.path("out")])
        for command in commands:
            result = self.run_command(*command)
            self.assertEqual(result.returncode, 0, result.stderr)
            for word in (self.before, *says):
                self.assertIn(word, result.stderr)

    def flip(self, path, at, bit=None):
        with open(path, "r+b") as f:
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 1 << (random.randrange(8) if bit is None else bit)]))

    def test_a_truncated_file(self):
        os.truncate(self.shard, os.path.getsize(self.shard) - 1)
        self.refuse_everywhere(self.latest, self.shard, "is complete: use " + self.before)
        self.pass_over(self.shard)

    def test_a_missing_manifest(self):
        os.remove(os.path.join(self.latest, "manifest.json"))
        self.refuse_everywhere(self.latest, "manifest.json", "is complete: use " + self.before)
        self.pass_over("manifest.json")

    def test_a_flipped_bit_of_a_tensor(self):
        seed = random.SystemRandom().randrange(2**32)
        print("flip of seed", seed, flush=True)
        random.seed(seed)
        with open(self.shard, "rb") as f:
            begin = 8 + int.from_bytes(f.read(8), "little")
        self.flip(self.shard, random.randrange(begin, os.path.getsize(self.shard)))
        self.refuse(["train", self.config, "--resume", self.path("out")], self.shard, 'tensor "', "damaged",
                    "is complete: use " + self.before)
        result = self.run_command("inspect", self.path("out"), "--verify")
        self.assertEqual(result.returncode, 1)
        self.assertIn(self.shard, result.stderr)

    def test_a_flipped_bit_of_the_manifest(self):
        seed = random.SystemRandom().randrange(2**32)
        print("flip of seed", seed, flush=True)
        random.seed(seed)
        manifest = os.path.join(self.latest, "manifest.json")
        self.flip(manifest, random.randrange(os.path.getsize(manifest)))
        self.refuse_everywhere(self.latest, "manifest.json", "is complete: use " + self.before)

    def test_a_digit_of_the_checksum_that_is_no_text(self):
        manifest = os.path.join(self.latest, "manifest.json")
        self.flip(manifest, os.path.getsize(manifest) - len('0"\n}\n'), 7)
        self.refuse_everywhere(self.latest, "manifest.json", "is complete: use " + self.before)

    def test_nothing_is_there(self):
        self.refuse_everywhere(self.path("missing"), "missing")
        self.refuse_everywhere(self.path("text.txt"), "text.txt")
        os.mkdir(self.path("empty"))
        self.refuse_everywhere(self.path("empty"), "empty", "no complete checkpoint")

    def refuse_resume(self, settings, *says):
        overrides = [word for setting in settings for word in ("--set", setting)]
        self.refuse(["train", self.config, "--resume", self.path("out"), *overrides], self.latest, *says)

    def test_another_model(self):
        self.refuse_resume(["model.width=64"], "model.width is 32", "64")
        self.refuse_resume(["model.layers=1"], "model.layers is 2", "1")  # its tensors are all there
        self.refuse_resume(["model.rope_theta=500"], "model.rope_theta")  # its tensors are the same
        self.refuse_resume(["train.seed=3"], "train.seed", "3")
        self.refuse_resume(["train.dtype=f64"], "f32", "f64")

    def test_another_text(self):
        self.write("text.txt", "xyz " * 1000)
        self.refuse(["train", self.config, "--resume", self.path("out")], "text.txt", "'x'", "vocabulary")


if __name__ == "__main__":
    unittest.main()
