#!/usr/bin/env python3
"""Decoding and prefill on one GPU with PyTorch: what bench/gpu_decode_cuda.cc runs with Phalanx.

    gpu_decode_torch.py [--batches 1,8,16,64] [--steps N] [--mode MODE] [--tiny] [--json FILE]

The Llama of 1.24 billion parameters, bf16, random weights and texts, decoded greedily in the way of gpt-fast:
a static cache of keys and values, one step compiled whole (MODE reduce-overhead, which records CUDA graphs,
or max-autotune) with scaled_dot_product_attention under a mask, q, k and v as one product, and gates and
what they gate as another. Steps are queued without waiting for tokens. Prefill is compiled without graphs;
its attention is causal, by flash or cuDNN. Bytes are those that a step must read: all weights (the table is
also the head) and the keys and values of the context. The bandwidth is that of a copy of 1 GiB. Needs the
package `torch`, 2.11 or later.
"""
import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

import gpu_models_torch as models

CONTEXT, CAPACITY, WARM = 1024, 2048, 4


def rotations(positions, head_width, theta=500000.0):
    """cos and sin [T, head_width / 2] of positions [T], in f32."""
    pairs = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * theta ** (-pairs / head_width)
    return angles.cos(), angles.sin()


def rotate(x, turns):
    """x [B, H, T, d]: halves are pairs."""
    cos, sin = turns
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.norms = nn.ModuleList(nn.RMSNorm(s.width, eps=1e-5) for _ in range(2))
        self.qkv = nn.Linear(s.width, (s.heads + 2 * s.kv_heads) * s.head_width, bias=False)
        self.o = nn.Linear(s.heads * s.head_width, s.width, bias=False)
        self.gate_up = nn.Linear(s.width, 2 * s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x, turns, cache, positions, mask):
        s = self.s
        b, t, _ = x.shape
        heads = (s.heads, s.kv_heads, s.kv_heads)
        qkv = self.qkv(self.norms[0](x)).view(b, t, sum(heads), s.head_width).transpose(1, 2)
        q, k, v = qkv.split(heads, dim=1)
        q, k = rotate(q, turns), rotate(k, turns)
        keys, values = cache
        keys[:, :, positions] = k
        values[:, :, positions] = v
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.table = nn.Embedding(s.vocabulary, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.width, eps=1e-5)

    def new_cache(self, batch, capacity):
        shape = (batch, self.s.kv_heads, capacity, self.s.head_width)
        weight = self.table.weight
        return [tuple(torch.zeros(shape, device=weight.device, dtype=weight.dtype) for _ in range(2))
                for _ in self.blocks]

    def forward(self, ids, positions, caches, mask):
        """The likeliest next tokens [B, 1] after ids [B, T] at positions [T]."""
        x = self.table(ids)
        turns = rotations(positions, self.s.head_width)
        for block, cache in zip(self.blocks, caches):
            x = block(x, turns, cache, positions, mask)
        return F.linear(self.norm(x[:, -1:]), self.table.weight).argmax(dim=-1)


def build(s, device):
    torch.manual_seed(1)
    model = Decoder(s).to(device, torch.bfloat16).eval()
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
    return model


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def copy_speed(device):
    n = 1 << (28 if device == "cuda" else 20)
    source, target = torch.empty(n, device=device), torch.empty(n, device=device)
    return 2 * 4 * n / models.median_ms(lambda: target.copy_(source)) * 1e3


def decode(model, batch, steps, mode, context, capacity, device):
    """Seconds a step, about the context."""
    s = model.s
    caches = model.new_cache(batch, capacity)
    for cache in caches:
        for tensor in cache:
            tensor.normal_()
            torch._dynamo.mark_static_address(tensor)
    places = torch.arange(capacity, device=device)

    def step(ids, position):
        return model(ids, position, caches, (places <= position)[None, None, None, :])

    run = torch.compile(step, mode=mode, fullgraph=True, dynamic=False)
    ids = torch.randint(s.vocabulary, (batch, 1), device=device)
    position = torch.tensor([context - steps // 2 - WARM], device=device)

    def go(count):
        nonlocal ids
        for _ in range(count):
            if hasattr(torch.compiler, "cudagraph_mark_step_begin"):
                torch.compiler.cudagraph_mark_step_begin()
            ids = run(ids, position).clone()
            position.add_(1)
        synchronise(device)

    go(WARM)
    begin = time.perf_counter()
    go(steps)
    return (time.perf_counter() - begin) / steps


def prefill(model, batch, tokens, device):
    """Median seconds."""
    caches = model.new_cache(batch, tokens)
    ids = torch.randint(model.s.vocabulary, (batch, tokens), device=device)
    positions = torch.arange(tokens, device=device)
    run = torch.compile(lambda: model(ids, positions, caches, None), fullgraph=True, dynamic=False)
    times = []
    for i in range(-2, 7):
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        if i >= 0:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


@torch.no_grad()
def measure(args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    s = models.tiny(models.MODELS["llama-1b"]) if args.tiny else models.MODELS["llama-1b"]
    context, capacity, tokens = (32, 64, 32) if args.tiny else (CONTEXT, CAPACITY, 2048)
    model = build(s, device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    copy = copy_speed(device)
    machine = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{machine}, torch {torch.__version__}, a copy {copy / 1e9:.0f} GB/s")
    rows = []
    for batch in map(int, args.batches.split(",")):
        torch._dynamo.reset()
        step_s = decode(model, batch, args.steps, args.mode, context, capacity, device)
        kv = batch * context * s.layers * 2 * s.kv_heads * s.head_width * 2
        rows.append({"sequences": batch, "ms_a_step": 1e3 * step_s, "tokens_per_s": batch / step_s,
                     "weight_bytes": weights, "kv_bytes": kv, "copy_bytes_per_s": copy,
                     "percent_of_copy": 100 * (weights + kv) / step_s / copy})
        print("decode {sequences:3}: {ms_a_step:8.3f} ms a step {tokens_per_s:10,.0f} tokens/s "
              "{percent_of_copy:5.1f} % of a copy".format(**rows[-1]), flush=True)
    for batch in (1, 8):
        torch._dynamo.reset()
        seconds = prefill(model, batch, tokens, device)
        rows.append({"prefill_sequences": batch, "tokens_of_each": tokens, "ms": 1e3 * seconds,
                     "tokens_per_s": batch * tokens / seconds})
        print("prefill {prefill_sequences} x {tokens_of_each}: {ms:8.2f} ms {tokens_per_s:10,.0f} tokens/s"
              .format(**rows[-1]), flush=True)
    return {"name": "decoding, PyTorch", "machine": machine, "torch": torch.__version__, "mode": args.mode,
            "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8,16,64")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--mode", default="reduce-overhead", help="of torch.compile, for steps")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to try the script")
    parser.add_argument("--json")
    args = parser.parse_args()
    result = measure(args)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
