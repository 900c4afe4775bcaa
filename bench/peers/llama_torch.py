#!/usr/bin/env python3
"""PyTorch's speed on two data-parallel processes (gloo): the model of configs/bench_512.toml written plainly.

  python3 bench/peers/llama_torch.py --parallel ddp [--ranks 2] [--microbatch 8] [--compile] [--steps 6]

A step is 8,192 tokens over all ranks: forward, cross-entropy and backward of each microbatch (`--microbatch`
sequences of 512; gradients travel in the last one alone), clipping to 1 and AdamW, for `ddp` the fused one.
`ddp` is DistributedDataParallel, `fsdp` fully_shard of each block (FSDP2). One thread a rank. Prints one JSON
object: rank 0's median step in milliseconds and tokens a second. Needs the package `torch`, 2.6 or later.
"""
import argparse
import contextlib
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

LAYERS, WIDTH, HEADS, HIDDEN, CONTEXT, VOCABULARY, SEQUENCES = 8, 512, 8, 1408, 512, 65, 16


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.RMSNorm(WIDTH, eps=1e-5)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm2 = nn.RMSNorm(WIDTH, eps=1e-5)
        self.gate_up = nn.Linear(WIDTH, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(d, dim=2)
        q, k, v = (z.view(b, t, HEADS, d // HEADS).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(CONTEXT), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


def shared_out(model, parallel):
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(rank, args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=args.ranks)
    torch.manual_seed(rank)
    model = shared_out(Decoder(), args.parallel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1,
                                  fused=args.parallel == "ddp")
    run = torch.compile(model) if args.compile else model
    microbatches = SEQUENCES // args.ranks // args.microbatch

    def step():
        for m in range(microbatches):
            last = m + 1 == microbatches
            ids, targets = torch.randint(VOCABULARY, (2, args.microbatch, CONTEXT))
            if args.parallel == "fsdp":
                model.set_requires_gradient_sync(last)
            quiet = args.parallel == "ddp" and not last
            with model.no_sync() if quiet else contextlib.nullcontext():
                (run(ids, targets) / microbatches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        median = statistics.median(seconds)
        print(json.dumps({"name": "train", "peer": f"torch {torch.__version__}", "parallel": args.parallel,
                          "ranks": args.ranks, "microbatch": args.microbatch, "compiled": args.compile,
                          "ms": 1e3 * median, "tokens_per_s": SEQUENCES * CONTEXT / median}), flush=True)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--microbatch", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--port", type=int, default=29517)
    args = parser.parse_args()
    torch.multiprocessing.spawn(train, args=(args,), nprocs=args.ranks)


if __name__ == "__main__":
    main()
