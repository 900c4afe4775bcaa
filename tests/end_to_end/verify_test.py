"""phalanx verify: every layout against one rank, as a table and as JSON."""

import json
import unittest

from command import MOE, Case

ROW = {"layout", "schedule", "sequence", "zero", "transport", "max_rel_grad_err", "worst_tensor", "loss_err",
       "pass", "seconds"}


class Verify(Case):
    def test_every_layout_agrees_with_one_rank(self):
        told = json.loads(self.succeed("verify", self.config, *MOE, "--ranks", "4", "--json", "-"))
        self.assertEqual(told["failed"], 0)
        self.assertIn("dp=1", told["reference"])
        runs = {(row["layout"], row["sequence"], row["zero"], row["schedule"]) for row in told["layouts"]}
        dense = {"dp=4", "dp=2,tp=2", "tp=4", "dp=2,cp=2", "cp=2,tp=2", "cp=4"}
        experts = ("ep=2", "ep=4", "etp=2", "etp=4", "ep=2,etp=2")
        layouts = dense | {f"{axes},{cut}" for axes in dense for cut in experts}
        self.assertEqual(runs, {(layout, sequence, zero, schedule) for layout in layouts for zero in (0, 1)
                                for sequence in ({False, True} if ",tp" in "," + layout else {False})
                                for schedule in ("sequential", "overlapped")})
        for row in told["layouts"]:
            self.assertLessEqual(ROW, set(row))
            self.assertIs(row["pass"], True)
            self.assertLess(row["max_rel_grad_err"], 1e-12)
            self.assertLess(row["loss_err"], 1e-12)
            self.assertRegex(row["worst_tensor"], r"\.")

    def test_a_list_of_layouts_a_table_and_a_file(self):
        table = self.succeed("verify", self.config, "--layouts", "dp=2;dp=3;dp=4", "--dtype", "f32", "--json",
                             self.path("verify.json"))
        self.assertEqual(table.count(" ok "), 12)
        with open(self.path("verify.json"), encoding="utf-8") as f:
            told = json.load(f)
        self.assertEqual([row["layout"] for row in told["layouts"][::4]], ["dp=2", "dp=3", "dp=4"])
        # f32 rounds: no errors at all would mean that nothing was compared.
        self.assertGreater(max(row["max_rel_grad_err"] for row in told["layouts"]), 1e-9)

    def test_a_layout_that_cannot_run_fails(self):
        result = self.run_command("verify", self.config, "--layouts", "pp=2")
        self.assertEqual(result.returncode, 1)
        self.assertIn("pp=2", result.stdout)
        self.assertRegex(result.stderr, r"\Aphalanx: 4 of 4 layouts [^\n]*\n\Z")

    def test_mistakes(self):
        for arguments, says in ((["--layouts", "dp=x"], ["dp=x"]),
                                (["--layouts", ""], ["--layouts is empty"]),
                                (["--layouts", "dp=2,ep=4"], ["dp=2,ep=4"]),
                                (["--json", self.path("missing", "file.json")], ["file.json"]),
                                (["--dtype", "f16"], ["--dtype", "f16"])):
            self.refuse(["verify", self.config, *arguments], *says)


if __name__ == "__main__":
    unittest.main()
