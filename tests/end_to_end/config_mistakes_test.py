"""Mistakes in a configuration or on the command line: one sentence each, before anything is computed."""

import unittest

from command import MOE, Case


class ConfigMistakes(Case):
    def test_an_unknown_key_names_the_nearest(self):
        self.refuse_settings(["model.widht=64"], "widht", '"width"')
        self.refuse_settings(["modle.width=64"], "modle", "model")
        self.write("config.toml", "[train]\nstep = 5\n")
        self.refuse(["train", self.config], "config.toml:2", '"step"', '"steps"')

    def test_a_wrong_type_says_what_is_expected(self):
        self.refuse_settings(["model.width=wide"], "model.width", "an integer", "wide")
        self.refuse_settings(["model.width=1.5"], "model.width", "an integer", "1.5")
        self.refuse_settings(["model.tied=3"], "model.tied", "3")
        self.refuse_settings(["model.norm=batchnorm"], "model.norm", "layernorm, rmsnorm")

    def test_a_value_out_of_range_says_the_range(self):
        self.refuse_settings(["train.steps=0"], "train.steps", "at least 1")
        self.refuse_settings(["train.batch=9000000000000000000"], "train.batch", "1048576")
        self.refuse_settings(["model.heads=3000000000"], "model.heads", "4096")
        self.refuse_settings(["model.dropout=1"], "model.dropout", "below 1")
        self.refuse_settings(["optimizer.lr=-1"], "optimizer.lr")
        self.refuse_settings(["optimizer.lr=nan"], "optimizer.lr")

    def test_sizes_that_do_not_divide_are_both_named(self):
        self.refuse_settings(["model.width=30"], "model.width 30", "model.heads 4")
        self.refuse_settings(["model.kv_heads=3"], "model.heads 4", "model.kv_heads 3")
        self.refuse_settings(["model.head_dim=7"], "model.head_dim 7")
        self.refuse_settings(["train.microbatch=3"], "train.microbatch 3", "8 sequences")
        self.refuse(["train", self.config, "--ranks", "3"], "train.batch 8", "3 data-parallel ranks",
                    'these layouts of 2 ranks fit: "dp=2", "cp=2", "tp=2"')
        self.refuse(["train", self.config, *MOE, "--set", "train.batch=9", "--layout", "dp=3,ep=3"],
                    "moe.experts 4", "ep = 3", 'these layouts of 3 ranks fit: "dp=3"')
        self.refuse(["train", self.config, *MOE, "--set", "moe.top_k=5"], "moe.top_k 5", "moe.experts 4")

    def test_ranks_and_layout_must_agree(self):
        self.refuse(["train", self.config, "--ranks", "4", "--layout", "dp=2"], "dp=2", "ranks 4")
        self.refuse(["train", self.config, "--layout", "dp=2,ep=4"], "dp=2,ep=4", "ep")
        self.refuse(["train", self.config, "--layout", "dp=two"], "dp=two")
        self.refuse(["train", self.config, "--layout", "zp=2"], "zp=2", "dp")
        self.refuse(["train", self.config, "--layout", "pp=8"], "8 stages", 'of 8 ranks fit: "pp=2,dp=4"')
        self.refuse(["train", self.config, "--layout", "tp=3"], "tp = 3", "model.heads 4", "1, 2 or 4")
        self.refuse(["train", self.config, "--ranks", "-1"], "-1")

    def test_a_config_that_is_none(self):
        self.refuse(["train", self.path("missing.toml")], "missing.toml", "No such file")
        self.refuse(["train", self.folder], self.folder, "not a regular file")
        self.write("config.toml", "[train\n")
        self.refuse(["train", self.config], "config.toml:1")

    def test_a_mistaken_command_line(self):
        self.refuse([], "--help")
        self.refuse(["trian", self.config], '"trian"', "train")
        self.refuse(["train"], "config")
        self.refuse(["train", self.config, "--rank", "2"], '"--rank"', "--ranks")
        self.refuse(["train", self.config, "more"], '"more"')
        self.refuse(["train", self.config, "--ranks", "two"], "--ranks", "two")
        self.refuse(["train", self.config, "--set", "train.steps"], "train.steps", "section.key=value")
        self.refuse(["train", self.config, "--schedule", "overlaped"], "overlaped", "is overlapped")
        self.refuse(["generate", "--prompt", "the"], "--model")


if __name__ == "__main__":
    unittest.main()
