"""Training as a user does it: the lines, what is learnt, layouts, resuming, the report."""

import html.parser
import math
import os
import re
import unittest

from command import MOE, WORDS, Case

LINE = {"step", "loss", "lr", "grad_norm", "tokens_per_s", "gemm_share"}
RING = ["--layout", "cp=2", "--set", "parallel.ulysses=1"]


class Report(html.parser.HTMLParser):
    """What a page would fetch, and whether its elements are closed in order."""
    VOID = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self, text):
        super().__init__()
        self.fetched, self.open, self.seen, self.text = [], [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.fetched += [value for name, value in attributes
                         if name in ("src", "href", "xlink:href", "srcset", "data") and value[0] != "#"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            raise ValueError(tag)

    def handle_data(self, data):
        self.text.append(data)


class Train(Case):
    def check_lines(self, lines, steps):
        self.assertEqual([line["step"] for line in lines], list(range(steps)))
        for line in lines:
            evaluated = (line["step"] + 1) % 20 == 0 or line["step"] + 1 == steps
            self.assertEqual(set(line), LINE | ({"val_loss"} if evaluated else set()))
            self.assertTrue(all(math.isfinite(value) for value in line.values()))
            self.assertGreater(line["tokens_per_s"], 0)
            self.assertGreater(line["gemm_share"], 0)

    def test_the_loss_falls_to_what_the_text_leaves_and_no_lower(self):
        # A word of the list gives ln(words) nats for its letters and the space behind it.
        least = math.log(len(WORDS)) / (sum(map(len, WORDS)) / len(WORDS) + 1)
        for options in ([], MOE):
            lines = self.train("--set", "train.steps=200", *options)
            self.check_lines(lines, 200)
            characters = len(set(" ".join(WORDS)))
            self.assertGreater(lines[0]["loss"], math.log(characters) - 0.1)
            # With tied tables a token expects itself at first.
            self.assertLess(lines[0]["loss"], math.log(characters) + 1)
            self.assertLess(lines[-1]["val_loss"], least + 0.45)
            self.assertGreater(lines[-1]["val_loss"], 0.95 * least)

    def test_multi_token_prediction_is_learnt_told_and_left_out_of_generation(self):
        mtp = ["--set", "model.mtp=2", "--set", "train.dtype=f64"]
        plain = self.train("--set", "train.dtype=f64")
        one = self.train(*mtp, "--report", self.path("report.html"))
        self.assertAlmostEqual(plain[0]["loss"], one[0]["loss"], delta=1e-12)
        self.assertEqual({key for line in one for key in line}, LINE | {"val_loss", "mtp_loss"})
        self.assertGreater(one[0]["mtp_loss"], one[-1]["mtp_loss"] + 0.3)
        for a, b in zip(one, self.train(*mtp, "--layout", "pp=2,tp=2"), strict=True):
            for key in ("loss", "mtp_loss", "grad_norm", "val_loss"):
                self.assertAlmostEqual(a.get(key, 0), b.get(key, 0), delta=1e-6, msg=(key, a))
        with open(self.path("report.html"), encoding="utf-8") as f:
            self.assertIn("Multi-token prediction", f.read())
        shown = self.run_command("train", self.config, *mtp, "--set", "train.steps=1").stderr
        self.assertRegex(shown, r"(?m)^step 1/1  loss \S+  mtp \d\.\d+  lr ")
        self.succeed("generate", "--model", self.path("out"), "--prompt", "the ", "--tokens", "4")

    def test_the_learning_rate_is_the_schedule(self):
        for line in self.train():
            step = line["step"]
            lr = 1e-2 * (step + 1) / 6 if step < 5 else (
                1e-4 + (1e-2 - 1e-4) * 0.5 * (1 + math.cos(math.pi * (step - 5) / 55)))
            self.assertAlmostEqual(line["lr"], lr, delta=1e-12)

    def test_layouts_schedules_and_microbatches_give_the_same_losses(self):
        f64 = [*MOE, "--set", "train.dtype=f64"]
        one = self.train(*f64)
        for options in (["--ranks", "2"], RING, ["--layout", "dp=2,ep=2", "--schedule", "overlapped"],
                        ["--layout", "dp=4,ep=2", "--set", "train.microbatch=1", "--schedule", "overlapped"]):
            for a, b in zip(one, self.train(*f64, *options), strict=True):
                for key in ("loss", "grad_norm", "val_loss"):
                    self.assertAlmostEqual(a.get(key, 0), b.get(key, 0), delta=1e-6, msg=(options, key, a))

    def test_documents_are_learnt_alike_in_every_layout(self):
        def losses(*arguments):
            return [line["loss"] for line in self.train("--set", "train.steps=5", "--set", "train.dtype=f64",
                                                        *arguments)]
        documents = ["--set", "data.documents=home "]
        alone = losses(*documents)
        self.assertNotEqual(alone, losses())
        for layout in ("cp=2,tp=2", "pp=2,dp=2", "cp=4"):
            for ours, theirs in zip(losses(*documents, "--layout", layout), alone, strict=True):
                self.assertAlmostEqual(ours, theirs, delta=1e-12)

    def test_a_resumed_run_is_the_same_run_in_another_layout_too(self):
        whole = self.train("--set", "train.dtype=f64", "--set", "train.keep=0")
        for layout in ([], ["--ranks", "2"], RING):
            part = self.train("--set", "train.dtype=f64", *layout, "--resume",
                              self.path("out", "step-00000020"), "--set", "train.out=" + self.path("resumed"))
            self.check_lines([dict(line, step=line["step"] - 20) for line in part], 40)
            for a, b in zip(whole[20:], part, strict=True):
                tolerance = 1e-6 if layout else 0
                self.assertAlmostEqual(a["loss"], b["loss"], delta=tolerance)
                self.assertAlmostEqual(a.get("val_loss", 0), b.get("val_loss", 0), delta=tolerance)

    def test_a_ring_resumes_to_the_bit(self):
        whole = self.train(*RING, "--set", "train.keep=0")
        part = self.train(*RING, "--resume", self.path("out", "step-00000020"), "--set",
                          "train.out=" + self.path("resumed"))
        for a, b in zip(whole[20:], part, strict=True):
            for key in ("loss", "grad_norm", "val_loss"):
                self.assertEqual(a.get(key), b.get(key), (key, a))

    def test_checkpoints_are_kept_as_configured(self):
        self.train()
        self.assertEqual(sorted(os.listdir(self.path("out"))), ["latest", "step-00000040", "step-00000060"])

    def test_people_get_a_progress_line_and_notes(self):
        result = self.run_command("train", self.config)
        self.assertEqual((result.returncode, result.stdout), (0, ""))
        self.assertRegex(result.stderr, r"(?m)^step 1/60  loss \d\.\d+  lr \S+  \|g\| \S+  "
                                        r"[\d,]+ tokens/s  \d+ % ")
        self.assertRegex(result.stderr, r"(?m)^step 60: validation loss \d\.\d+$")
        self.assertIn("saved " + self.path("out", "step-00000060"), result.stderr)

    def test_the_report_stands_alone(self):
        self.train("--report", self.path("report.html"), "--ranks", "2", *MOE)
        with open(self.path("report.html"), encoding="utf-8") as f:
            text = f.read()
        report = Report(text)
        self.assertEqual(report.open, [])
        self.assertEqual([url for url in report.fetched if not url.startswith("data:")], [])
        urls = set(re.findall(r"https?://[^\s\"'<>]*", text))
        self.assertLessEqual(urls, {"http://www.w3.org/2000/svg"})
        self.assertNotRegex(text, r"@import|url\(\s*['\"]?(?!#|data:)")
        self.assertIn("svg", report.seen)
        shown = " ".join(report.text)
        self.assertIn(self.config, shown)
        self.assertRegex(shown, r"(?i)expert")
        self.assertIn("waiting for other ranks", shown)
        size = r"<td>([\d.]+) ([KM])iB</td>"
        rows = re.findall(r"<tr><td>(\d)</td><td>cpu</td>" + size + size + "</tr>", text)
        self.assertEqual(sorted(row[0] for row in rows), ["0", "1"])
        kib = {"K": 1, "M": 1024}
        for _, peak, unit, taken, taken_unit in rows:
            self.assertTrue(0 < float(peak) * kib[unit] <= float(taken) * kib[taken_unit], rows)

    def test_the_printed_config_is_a_config(self):
        options = ["--set", "model.width=48", "--ranks", "2"]
        printed = self.succeed("train", self.config, "--print-config", *options)
        self.assertRegex(printed, r"(?m)^width = 48$")
        again = self.write("again.toml", printed)
        self.assertEqual(self.succeed("train", again, "--print-config"), printed)


if __name__ == "__main__":
    unittest.main()
