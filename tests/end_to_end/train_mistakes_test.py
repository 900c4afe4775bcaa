"""What can go wrong around a run: its text, its places to write to, its arithmetic."""

import os
import unittest

from command import Case, json_lines


class TrainMistakes(Case):
    def test_a_text_that_cannot_be_read(self):
        self.refuse(["train", self.config, "--text", self.path("missing.txt")], "missing.txt", "No such file")
        self.refuse(["train", self.config, "--text", self.folder], self.folder, "not a regular file")
        if os.geteuid() != 0:
            os.chmod(self.path("text.txt"), 0)
            result = self.run_command("train", self.config)
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, r"\Aphalanx: [^\n]*text.txt: Permission denied[^\n]*\n\Z")

    def test_a_text_without_enough_in_it(self):
        self.write("text.txt", "")
        self.refuse(["train", self.config], "text.txt", "empty")
        self.write("text.txt", "too short for it")
        self.refuse(["train", self.config], "text.txt", "model.context 16", "17")

    def test_a_directory_that_cannot_be_written_is_found_before_the_first_step(self):
        self.refuse_settings(["train.out=/proc/phalanx"], "train.out", "/proc/phalanx")
        self.refuse_settings(["train.out=" + self.path("text.txt")], "text.txt", "Not a directory")
        if os.geteuid() != 0:
            os.mkdir(self.path("closed"), 0o500)
            self.refuse_settings(["train.out=" + self.path("closed")], "closed", "Permission denied")

    def test_a_report_that_cannot_be_written_is_found_before_the_first_step(self):
        self.refuse(["train", self.config, "--report", self.path("missing", "report.html")], "report.html")
        self.refuse(["train", self.config, "--report", self.folder], self.folder)

    def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(self):
        self.train("--set", "train.steps=20")
        good = self.files("out")
        for transport in ("threads", "process"):
            result = self.run_command("train", self.config, "--json", "--ranks", "2", "--resume",
                                      self.path("out"), "--set", "optimizer.lr=1e30", "--set",
                                      "train.save_every=0", "--set", "parallel.transport=" + transport)
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, r"\nphalanx: step 21: the loss is nan [^\n]*first bad tensor: "
                                            r"the [^\n]*embedding.w;[^\n]*out/step-00000020\n\Z")
            self.assertEqual([line["step"] for line in json_lines(result.stdout)], [20])
            self.assertEqual(self.files("out"), good)
        self.succeed("generate", "--model", self.path("out"), "--prompt", "the ", "--tokens", "1")

    def test_a_model_that_no_memory_holds(self):
        self.refuse_settings(["model.width=131072", "model.heads=1", "model.layers=1000"],
                             "a rank's weights", "this machine has", "parallel.zero=3", "model.width")

    def test_a_loss_that_is_never_finite_says_that_nothing_was_saved(self):
        result = self.run_command("train", self.config, "--json", "--set", "model.init_std=1e30")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"\Aphalanx: step 0: [^\n]*no checkpoint was saved before\n\Z")


if __name__ == "__main__":
    unittest.main()
