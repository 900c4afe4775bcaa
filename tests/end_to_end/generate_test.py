"""Generating from a checkpoint: streaming, JSON, seeds, limits, and mistakes."""

import json
import os
import subprocess
import time
import unittest

from command import DEADLINE, MOE, PHALANX, WORDS, Case

SPEECH = "the cat sat on a mat and "


class Generate(Case):
    def setUp(self):
        super().setUp()
        self.train("--set", "train.steps=150", "--set", "train.eval_every=0", *MOE)
        self.model = ["generate", "--model", self.path("out"), "--prompt"]

    def text(self, *arguments, prompt=SPEECH):
        return self.succeed(*self.model, prompt, "--tokens", "40", *arguments)

    def test_json_tells_all_and_agrees_with_the_streamed_text(self):
        told = json.loads(self.text("--seed", "3", "--json"))
        self.assertEqual(set(told), {"prompt_tokens", "tokens", "text", "ms_first", "tokens_per_s"})
        self.assertEqual(told["prompt_tokens"], len(SPEECH))
        self.assertEqual(len(told["tokens"]), 40)
        vocabulary = sorted(set(" ".join(WORDS)))
        self.assertEqual(told["text"], "".join(vocabulary[token] for token in told["tokens"]))
        self.assertGreater(told["ms_first"], 0)
        self.assertGreater(told["tokens_per_s"], 0)
        self.assertEqual(self.text("--seed", "3"), SPEECH + told["text"] + "\n")

    def test_a_seed_is_a_text(self):
        texts = [self.text("--seed", str(seed)) for seed in (1, 1, 2, 3)]
        self.assertEqual(texts[0], texts[1])
        self.assertEqual(len(set(texts)), 3)

    def test_greedy_is_the_likeliest_whatever_the_seed(self):
        greedy = self.text("--temperature", "0", "--seed", "1")
        self.assertEqual(self.text("--temperature", "0", "--seed", "2"), greedy)
        self.assertEqual(self.text("--top-k", "1", "--seed", "3"), greedy)
        self.assertEqual(self.text("--top-p", "1e-9", "--seed", "4"), greedy)

    def test_it_has_learnt_words(self):
        words = self.text("--temperature", "0.5", "--seed", "5").split()[:-1]  # the last one may be cut
        known = sum(word in WORDS for word in words)
        self.assertGreater(known, 0.6 * len(words), words)

    def test_text_streams_while_it_is_made(self):
        with subprocess.Popen([PHALANX, *self.model, SPEECH, "--tokens", "100000000"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as run:
            begin = time.monotonic()
            got = b""
            while len(got) < len(SPEECH) + 50 and time.monotonic() < begin + DEADLINE:
                got += os.read(run.stdout.fileno(), 4096)
            run.terminate()
            _, errors = run.communicate(timeout=DEADLINE)
        self.assertEqual((run.returncode, errors), (1, b"phalanx: interrupted\n"))
        self.assertTrue(got.startswith(SPEECH.encode()))

    def test_mistakes(self):
        for arguments, says in (
                (["the THE"], ["'T'", "vocabulary"]),
                ([""], ["empty prompt"]),
                ([SPEECH, "--tokens", "0"], ["tokens 0", "at least 1"]),
                ([SPEECH, "--tokens", "-5"], ["tokens -5", "at least 1"]),
                ([SPEECH, "--tokens", "many"], ["--tokens", "many"]),
                ([SPEECH, "--temperature", "-0.1"], ["temperature -0.1", "at least 0"]),
                ([SPEECH, "--temperature", "nan"], ["temperature nan"]),
                ([SPEECH, "--top-p", "1.01"], ["top-p 1.01", "at most 1"]),
                ([SPEECH, "--top-p", "0"], ["top-p 0", "more than 0"]),
                ([SPEECH, "--top-k", "-1"], ["top-k -1", "at least 1"]),
                ([SPEECH, "--topk", "3"], ['"--topk"', "--top-k"]),
                ([SPEECH, "--device", "tpu"], ["--device", "tpu"]),
                ([SPEECH, "--weights", "f16"], ["--weights", "f16"]),
                ([SPEECH, "--weights", "bf16"], ["--weights bf16", "--device cuda"])):
            self.refuse([*self.model, *arguments], *says)


if __name__ == "__main__":
    unittest.main()
