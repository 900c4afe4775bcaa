"""What the tests of this folder share: the command, a text it can learn, a small model, and what every
mistake owes its user."""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

SOURCE = sys.argv.pop(2)  # arguments: the command, the source directory
PHALANX = os.path.abspath(sys.argv.pop(1))
DEADLINE = 60  # seconds for one command: nothing may hang

WORDS = "the cat sat on a mat and saw two dogs run far away from home".split()

CONFIG = """[model]
layers = 2
width = 32
heads = 4
context = 16
[data]
text = "{folder}/text.txt"
[train]
steps = 60
batch = 8
eval_every = 20
eval_batches = 0
save_every = 20
keep = 2
out = "{folder}/out"
[optimizer]
lr = 1e-2
warmup = 5
"""

MOE = ["--set", "model.mlp=moe", "--set", "moe.experts=4", "--set", "moe.expert_width=16"]


def learnable_text(words=4000):
    """Words of the list, drawn evenly: so many nats a character are left to the best of models."""
    seed = random.SystemRandom().randrange(2**32)
    print("text of seed", seed, flush=True)
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + " " for _ in range(words))


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


class Case(unittest.TestCase):
    """A folder of its own with text.txt and config.toml; out/ is where the config trains to."""

    deadline = DEADLINE

    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix="phalanx-test-")
        self.addCleanup(holder.cleanup)
        self.folder = holder.name
        self.config = self.write("config.toml", CONFIG.format(folder=self.folder))
        self.write("text.txt", learnable_text())

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text)
        return self.path(name)

    def run_command(self, *arguments):
        return subprocess.run([PHALANX, *arguments], cwd=self.folder, capture_output=True, text=True,
                              timeout=self.deadline, check=False)

    def succeed(self, *arguments):
        """Runs `phalanx arguments`, which must end with status 0; gives its standard output."""
        result = self.run_command(*arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def train(self, *arguments):
        """A run from the config; gives its JSON lines."""
        return json_lines(self.succeed("train", self.config, "--json", *arguments))

    def files(self, name="."):
        """{path: checksum} of everything below."""
        found = {}
        for folder, _, names in os.walk(self.path(name)):
            for file in names:
                path = os.path.join(folder, file)
                with open(path, "rb") as f:
                    found[os.path.relpath(path, self.folder)] = hashlib.sha256(f.read()).hexdigest()
        return found

    def refuse(self, arguments, *says):
        """`phalanx arguments` fails with one sentence that says all of `says`, and changes no file."""
        before = self.files()
        result = self.run_command(*arguments)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertRegex(result.stderr, r"\Aphalanx[^\n]*\n\Z")
        for word in says:
            self.assertIn(word, result.stderr)
        self.assertEqual(self.files(), before)

    def refuse_settings(self, settings, *says):
        """The same for `train` with these keys set."""
        overrides = [word for setting in settings for word in ("--set", setting)]
        self.refuse(["train", self.config, *overrides], *says)
