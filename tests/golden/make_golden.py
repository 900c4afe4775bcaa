#!/usr/bin/env python3
"""Writes the files of this folder: what PyTorch computes for tiny models, in f64, for golden_test.cc.

  python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers
  /tmp/golden/bin/python tests/golden/make_golden.py

The dense models are Hugging Face's GPT2LMHeadModel and LlamaForCausalLM; the mixtures of experts are that
Llama (models.py), and DeepseekV3ForCausalLM (deepseek.py), with the MLPs replaced by the Moe of models.py,
whose choice within groups is held equal to Hugging Face's DeepseekV3TopkRouter. Multi-token prediction is
written here: Hugging Face's leaves it out. Each file holds the text and targets of three optimizer steps
and, under our names and in our shapes: every weight before, its gradient in the first step, and the weight
after the three steps (clipping, then torch.optim.AdamW with decay on matrices alone). The metadata holds our
configuration of the same run.
"""

import math
import os

import safetensors.torch
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from deepseek import DeepSeek, DeepSeekAhead, DeepSeekQueries
from models import (BETAS, CLIP, CONTEXT, DECAY, EPS, IGNORE, LR, SEQUENCES, STEPS, VOCABULARY, Gpt2, Llama,
                    LlamaMoe, LlamaMoeDeepseek, LlamaMoeSigmoid, Moe)


def randomise(module):
    """Values of one size everywhere, so that every parameter matters; norms around one."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.normal_(0, 0.4)
            if p.dim() == 1 and name.endswith("weight"):
                p.add_(1)


def optimizer_of(module):
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [p for p in module.parameters() if p.dim() == 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": DECAY},
                              {"params": vectors, "weight_decay": 0.0}], lr=LR, betas=BETAS, eps=EPS)


def exported(prefix, model, get):
    return {f"{prefix}.{name}": t.detach().clone().contiguous() for name, t in model.names(get).items()}


def golden(model):
    randomise(model.module)
    tokens = torch.randint(VOCABULARY, (STEPS, SEQUENCES, CONTEXT))
    targets = torch.randint(VOCABULARY, (STEPS, SEQUENCES, CONTEXT))
    targets[torch.rand(targets.shape) < 0.15] = IGNORE
    parameters = dict(model.module.named_parameters())
    out = exported("before", model, lambda name: parameters[name])
    optimizer = optimizer_of(model.module)
    losses, balance_losses, mtp_losses, norms = [], [], [], []
    for step in range(STEPS):
        logits, balance_loss = model.forward(tokens[step])
        assert logits.dtype == torch.float64
        loss = F.cross_entropy(logits.flatten(0, 1), targets[step].flatten(), ignore_index=IGNORE)
        balance_loss = balance_loss / (targets[step] != IGNORE).sum()
        z_loss = getattr(model, "z_losses", 0) / (targets[step] != IGNORE).sum()
        of_routers = getattr(model, "losses", {}).get("z_loss", 0) * z_loss
        mtp_loss = torch.zeros(())
        if hasattr(model, "mtp_loss"):
            mtp_loss = model.mtp_loss(targets[step]) / (targets[step] != IGNORE).sum()
        optimizer.zero_grad()
        (of_routers + loss + getattr(model, "coefficient", 0) * balance_loss
         + getattr(model, "weight", 0) * mtp_loss).backward()
        if step == 0:
            out |= exported("gradient", model, lambda name: parameters[name].grad)
        norms.append(nn.utils.clip_grad_norm_(model.module.parameters(), CLIP).item())
        losses.append(loss.item())
        balance_losses.append(balance_loss.item())
        mtp_losses.append(mtp_loss.item())
        optimizer.step()
        for layer in (m for m in model.module.modules() if isinstance(m, Moe)):
            layer.end_step()
    assert all(math.isfinite(x) for x in losses) and max(norms) > CLIP, norms
    out |= exported("after", model, lambda name: parameters[name])
    out |= {"tokens": tokens.int(), "targets": targets.int()}
    numbers = {"loss": losses, "balance_loss": balance_losses, "grad_norm": norms}
    if any(mtp_losses):
        numbers["mtp_loss"] = mtp_losses
    for name, values in numbers.items():
        out[name] = torch.tensor(values, dtype=torch.float64)
    made_by = f"# make_golden.py, torch {torch.__version__}, transformers {transformers.__version__}\n"
    return out, {"config": made_by + model.config}  # of several keys the order would vary


def main():
    torch.set_num_threads(1)
    models = {"gpt2": (1, Gpt2), "llama": (2, Llama), "llama_moe": (3, LlamaMoe),
              "llama_moe_sigmoid": (4, LlamaMoeSigmoid), "llama_moe_deepseek": (5, LlamaMoeDeepseek),
              "deepseek": (5, DeepSeek), "deepseek_queries": (6, DeepSeekQueries),
              "deepseek_mtp": (7, DeepSeekAhead)}
    for name, (seed, make) in models.items():
        torch.manual_seed(seed)
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".safetensors")
        tensors, metadata = golden(make())
        with open(path, "wb") as f:
            f.write(safetensors.torch.save(tensors, metadata))
        print(f"{path}: loss {tensors['loss'].tolist()}, gradient norm {tensors['grad_norm'].tolist()}")


if __name__ == "__main__":
    main()
