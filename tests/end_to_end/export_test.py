"""phalanx export, and training that starts from what it wrote."""

import json
import os
import unittest

from command import Case

LATENT = ["--set", "model.attention=mla", "--set", "model.kv_lora_rank=12", "--set", "model.tied=false"]


class Export(Case):
    def read(self, *path):
        with open(self.path(*path), "rb") as f:
            return f.read()

    def export(self, run, name):
        self.succeed("export", self.path(run), "--out", self.path(name))

    def test_training_starts_from_an_exported_model_in_any_layout(self):
        self.train("--set", "train.steps=20", *LATENT)
        self.export("out", "hf")
        still = ["--set", f"train.init={self.path('hf')}", "--set", "train.steps=1",
                 "--set", "optimizer.lr=1e-30", "--set", "optimizer.min_lr=0"]
        layouts = (("dp=1", 0), ("tp=4", 0), ("cp=2,tp=2", 0), ("pp=2,dp=2", 3))
        for number, (layout, zero) in enumerate(layouts):
            self.train("--layout", layout, "--set", f"parallel.zero={zero}",
                       "--set", f"train.out={self.path(f'again{number}')}", *still)
            self.export(f"again{number}", f"hf{number}")
            for file in ("config.json", "model.safetensors"):
                self.assertEqual(self.read("hf", file), self.read(f"hf{number}", file), (layout, file))

    def test_depths_of_multi_token_prediction_travel_and_may_be_left(self):
        self.train("--set", "train.steps=5", *LATENT, "--set", "model.mtp=2")
        self.export("out", "hf")
        self.assertEqual(json.loads(self.read("hf", "config.json"))["num_nextn_predict_layers"], 2)
        still = ["--set", f"train.init={self.path('hf')}", "--set", "train.steps=1",
                 "--set", "optimizer.lr=1e-30", "--set", "optimizer.min_lr=0"]
        for depths, layout in ((2, "pp=2,tp=2"), (0, "dp=2")):
            self.train("--layout", layout, "--set", f"model.mtp={depths}", "--set",
                       f"train.out={self.path(f'again{depths}')}", *still)
            self.export(f"again{depths}", f"hf{depths}")
        for file in ("config.json", "model.safetensors"):
            self.assertEqual(self.read("hf", file), self.read("hf2", file), file)
        self.assertLess(len(self.read("hf0", "model.safetensors")), len(self.read("hf", "model.safetensors")))
        self.refuse(["train", self.config, "--set", "model.mtp=3", *still], "model.layers.4.enorm.weight")

    def test_a_model_without_a_family_and_a_directory_that_exists_are_refused(self):
        self.train("--set", "train.steps=2", "--set", "model.mlp=gelu")
        self.refuse(["export", self.path("out"), "--out", self.path("hf")], "LlamaForCausalLM", "model.mlp")
        self.assertFalse(os.path.exists(self.path("hf")))
        self.refuse(["train", self.config, "--set", f"train.init={self.path('none')}"], "config.json")

    def test_another_vocabulary_names_the_tensor(self):
        self.train("--set", "train.steps=2")
        self.export("out", "hf")
        self.assertEqual(json.loads(self.read("hf", "config.json"))["model_type"], "llama")
        self.refuse(["train", self.config, "--set", f"train.init={self.path('hf')}",
                     "--set", "data.tokenizer=byte"], "model.embed_tokens.weight", "[256, 32] is expected")


if __name__ == "__main__":
    unittest.main()
