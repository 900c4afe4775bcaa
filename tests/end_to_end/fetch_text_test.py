"""scripts/fetch_text.py without the network: what it leaves alone, what it says, and how it reads a play."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import unittest

SOURCE = sys.argv.pop(2)  # arguments: the command, the source directory
sys.argv.pop(1)
SCRIPT = os.path.join(SOURCE, "scripts", "fetch_text.py")

PLAY = """THE PLAY

PERSONS REPRESENTED.

ROMEO
JULIET

ACT I.

SCENE I. A street.

[Enter ROMEO [with a
torch], and others.]

ROMEO.
  Soft! _what_ light [aside] is this?
It is the east.

[Exit.]

And Juliet.

2 SERVANT.
Anon.

Nurse.
Peter!

Nurse.
Anon!

Nurse.
Farewell.

{They go]

THE END
"""

SPEECHES = """ROMEO:
Soft! what light  is this?
It is the east.
And Juliet.

2 SERVANT:
Anon.

NURSE:
Peter!

NURSE:
Anon!

NURSE:
Farewell.

"""


def load():
    spec = importlib.util.spec_from_file_location("fetch_text", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FetchText(unittest.TestCase):
    def run_offline(self, path):
        nowhere = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "",
                   "PIP_FIND_LINKS": "", "PIP_NO_INDEX": "", "PIP_CONFIG_FILE": os.devnull,
                   "PIP_NO_CACHE_DIR": "1"}
        return subprocess.run([sys.executable, "-B", SCRIPT, path], env=nowhere, capture_output=True,
                              text=True, check=False)

    def test_offline_is_one_clear_sentence(self):
        with tempfile.TemporaryDirectory() as folder:
            result = self.run_offline(os.path.join(folder, "deep", "text.txt"))
            self.assertEqual(result.returncode, 1)
            self.assertEqual(os.listdir(folder), [])
            self.assertEqual(result.stdout, "")
            self.assertRegex(result.stderr, r"\Afetch_text: [^\n]*(offline|pip)[^\n]*--text FILE\.\n\Z")

    def test_a_file_that_is_there_is_left_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "text.txt")
            with open(path, "w", encoding="utf-8") as f:
                f.write("mine")
            result = self.run_offline(path)
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
            with open(path, encoding="utf-8") as f:
                self.assertEqual(f.read(), "mine")

    def test_a_play_becomes_names_and_speeches(self):
        self.assertEqual(load().speeches(PLAY), SPEECHES)


if __name__ == "__main__":
    unittest.main()
