#!/usr/bin/env python3
"""PyTorch's speed on nanoGPT's small models: the same decoder written plainly, one full training step.

  python3 bench/peers/nanogpt_torch.py --model small --threads 2 [--compile] [--steps 30]

Prints one JSON object: the median step in milliseconds and tokens a second. Needs the package `torch`, 2 or
later.
The step is forward, cross-entropy, backward, clipping to 1 and AdamW (the fused CPU one where there is one),
without dropout, biases or data loading; attention is scaled_dot_product_attention with is_causal.
"""
import argparse
import json
import math
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

MODELS = {
    "small": dict(layers=4, width=128, heads=4, context=64, batch=12, vocabulary=65),
    "medium": dict(layers=6, width=384, heads=6, context=256, batch=4, vocabulary=65),
}


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(d, dim=2)
        q, k, v = (z.view(b, t, self.heads, d // self.heads).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    def __init__(self, layers, width, heads, context, vocabulary):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(p, std=0.02 / scale)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    sizes = dict(MODELS[args.model])
    batch = sizes.pop("batch")
    model = Decoder(**sizes)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [dict(params=decayed, weight_decay=0.1), dict(params=others, weight_decay=0.0)]
    try:
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    except (RuntimeError, TypeError):
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    run = torch.compile(model) if args.compile else model
    shape = (batch, sizes["context"])

    def step():
        ids = torch.randint(sizes["vocabulary"], shape)
        targets = torch.randint(sizes["vocabulary"], shape)
        loss = run(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for _ in range(5):
        step()
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    result = dict(name="train", peer=f"torch {torch.__version__}", model=args.model, threads=args.threads,
                  compiled=args.compile, ms=1e3 * median, tokens_per_s=batch * sizes["context"] / median)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
