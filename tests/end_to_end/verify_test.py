"""phalanx verify: every layout against one rank, as a table and as JSON."""

import json
import unittest

from command import MOE, Case

ROW = {"layout", "schedule", "sequence", "tp_overlap", "ulysses", "zero", "transport", "max_rel_grad_err",
       "worst_tensor", "first_tensor", "loss_err", "replayed", "pass", "seconds", "slices"}


class Verify(Case):
    deadline = 240  # a hundred cases

    def test_every_layout_agrees_with_one_rank(self):
        told = json.loads(self.succeed("verify", self.config, *MOE, "--ranks", "4", "--json", "-"))
        self.assertEqual(told["failed"], 0)
        self.assertIn("dp=1", told["reference"])
        stages = {1: ("dp=4", "dp=2,tp=2", "tp=4", "dp=2,cp=2", "cp=2,tp=2", "cp=4"),
                  2: ("pp=2,dp=2", "pp=2,tp=2", "pp=2,cp=2")}
        experts = {1: ("ep=2", "ep=4", "etp=2", "etp=4", "ep=2,etp=2"), 2: ("ep=2", "etp=2")}
        layouts = {axes for dense in stages.values() for axes in dense}
        layouts |= {f"{axes},{cut}" for pp, dense in stages.items() for axes in dense for cut in experts[pp]}
        self.assertEqual({row["layout"] for row in told["layouts"]}, layouts)
        self.expect_pairs(told["layouts"])
        for row in told["layouts"]:
            self.assertLessEqual(ROW, set(row))
            self.assertIs(row["pass"], True)
            self.assertLess(row["max_rel_grad_err"], 1e-12)
            self.assertLess(row["loss_err"], 1e-12)
            self.assertRegex(row["worst_tensor"], r"\.")
            self.assertEqual(row["first_tensor"], "")
            self.assertEqual(row["replayed"], 0)

    def expect_pairs(self, rows):
        """Any two settings that can meet do, in some row."""
        met = {(row["schedule"], row["zero"]) for row in rows}
        met |= {(row["schedule"], row["sequence"]) for row in rows if "tp" in row["layout"]}
        met |= {(row["schedule"], f"tp_overlap={row['tp_overlap']}") for row in rows if "tp" in row["layout"]}
        met |= {(row["schedule"], f"slices={row['slices']}") for row in rows}
        met |= {(row["schedule"], axis) for row in rows for axis in row["layout"].split(",")}
        pipelines = ("sequential", "gpipe", "1f1b", "zb-h1", "dualpipe")
        for schedule in (*pipelines, "overlapped"):
            axes = ("dp=2", "cp=2", "tp=2", "ep=2") + (("pp=2",) if schedule in pipelines else ())
            for other in (0, 1, True, False, "slices=1", "slices=2", "tp_overlap=True", *axes):
                self.assertIn((schedule, other), met)

    def test_latent_attention_agrees_in_every_layout(self):
        options = [f"--set=model.{key}={value}" for key, value in
                   {"attention": "mla", "heads": 4, "kv_lora_rank": 7, "qk_nope_head_dim": 5, "v_head_dim": 3,
                    "layers": 2}.items()]
        for rank in (0, 6):  # of the queries' latent
            told = json.loads(self.succeed("verify", self.config, *options, f"--set=model.q_lora_rank={rank}",
                                           "--ranks", "4", "--json", "-"))
            self.assertEqual(told["failed"], 0)
            self.assertLess(max(row["max_rel_grad_err"] for row in told["layouts"]), 1e-12)
            self.assertEqual(len({row["layout"] for row in told["layouts"]}), 9)
            self.assertEqual({row["ulysses"] for row in told["layouts"] if row["layout"] == "cp=4"},
                             {1, 2, 4})

    def test_a_list_of_layouts_a_table_and_a_file(self):
        table = self.succeed("verify", self.config, "--layouts", "dp=2;dp=3;dp=4", "--dtype", "f32", "--json",
                             self.path("verify.json"))
        self.assertGreaterEqual(table.count(" ok "), 3 * 8)  # schedules by ZeRO or recomputation
        with open(self.path("verify.json"), encoding="utf-8") as f:
            told = json.load(f)
        self.assertEqual({row["layout"] for row in told["layouts"]}, {"dp=2", "dp=3", "dp=4"})
        # f32 rounds: no errors at all would mean that nothing was compared.
        self.assertGreater(max(row["max_rel_grad_err"] for row in told["layouts"]), 1e-9)

    def test_parts_make_the_whole(self):
        def cases(*part):
            told = json.loads(self.succeed("verify", self.config, "--layouts", "dp=2", "--json", "-", *part))
            return [{**row, "seconds": 0} for row in told["layouts"]]
        whole = cases()
        parts = [cases("--part", f"{k}/3") for k in (1, 2, 3)]
        self.assertEqual([case for part in parts for case in part], whole[0::3] + whole[1::3] + whole[2::3])
        for mistake in ("0/3", "4/3", "3", "1/3x", "1/1000000", "-1/3"):
            result = self.run_command("verify", self.config, "--layouts", "dp=2", "--part", mistake)
            self.assertEqual(result.returncode, 1)
            self.assertIn(f"--part {mistake} is not as in 3/16", result.stderr)

    def test_the_first_tensor_that_differs_is_named(self):
        # Weights so large that f32 cannot agree to 1e-5, in any layer.
        result = self.run_command("verify", self.config, "--layouts", "tp=2", "--dtype", "f32",
                                  "--set", "model.init_std=5")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stdout, r"(?m)^  the first that differs, from the loss: (embedding|norm)\.w$")

    def test_a_layout_that_cannot_run_fails(self):
        result = self.run_command("verify", self.config, "--layouts", "ep=2,dp=2")
        self.assertEqual(result.returncode, 1)
        self.assertIn("ep=2", result.stdout)
        self.assertRegex(result.stderr, r"\Aphalanx: (\d+) of \1 layouts [^\n]*\n\Z")

    def test_mistakes(self):
        for arguments, says in ((["--layouts", "dp=x"], ["dp=x"]),
                                (["--layouts", ""], ["--layouts is empty"]),
                                (["--layouts", "dp=2,ep=4"], ["dp=2,ep=4"]),
                                (["--json", self.path("missing", "file.json")], ["file.json"]),
                                (["--dtype", "f16"], ["--dtype", "f16"])):
            self.refuse(["verify", self.config, *arguments], *says)


if __name__ == "__main__":
    unittest.main()
