#!/usr/bin/env python3
"""PyTorch's speed in single ops and in decoding on one GPU, medians by CUDA events.

  python3 bench/peers/gpu_ops_torch.py [--parts copy,adamw,attention,rows,decode] [--tiny] [--json FILE]

  copy       device to device; the yardstick of the ops that move bytes (read and written)
  adamw      of the 1.24 billion weights of llama-1b: torch's fused AdamW (all f32: 28 bytes a weight) and the
             one that gpu_training_torch.py compiles (bf16 weights, f32 master weights and moments; 28 bytes
             with bf16 gradients, 30 with f32)
  attention  scaled_dot_product_attention, causal, of the models' shapes by cuDNN and flash: operations are
             those of the pairs a causal mask leaves, 2·B·H·T²·head width forward, 2.5 times that backward
  rows       bf16 rows of 7168, top 8 of 64 experts: each token copied to its 8 rows, and those summed to the
             token by f32 weights; bytes as if each were read and written once
  decode     tokens a second of llama-1b after 1024 tokens, one CUDA graph a token, greedy: in bf16, attention
             over a full static cache; eager, and each layer compiled, with attention by flash or math
"""
import argparse
import dataclasses
import json
import statistics

import torch
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

import gpu_models_torch as models
import gpu_training_torch as training

WIDTH, TOP_K, EXPERTS = 7168, 8, 64


def moved(name, bytes_moved, call):
    ms = models.median_ms(call)
    return {"op": name, "ms": ms, "gb_per_s": bytes_moved / ms / 1e6}


def compiled(args, call, **options):
    return torch.compile(call, dynamic=False, **options) if args.device == "cuda" else call


def as_graph(args, call):
    """The call captured in a CUDA graph, so that its launches take the host no time."""
    if args.device == "cpu":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def copy(args):
    source = torch.empty(2**20 if args.tiny else 2**31, dtype=torch.uint8, device=args.device).random_()
    target = torch.empty_like(source)
    yield moved("copy", 2 * source.numel(), lambda: target.copy_(source))


def adamw(args):
    s = args.sizes["llama-1b"]
    model = models.build(s, args.device, torch.float32)
    count = models.parameters(model)[0]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer = training.fused_adamw(model.parameters())
    yield moved("adamw fused, f32", 28 * count, optimizer.step)
    del optimizer, model
    for name, dtype, each in (("bf16", torch.bfloat16, 28), ("f32", torch.float32, 30)):
        model = models.build(s, args.device, torch.bfloat16)
        optimizer = training.MasterAdamW(model.parameters(), compiled=args.device == "cuda")
        grads = [torch.randn(p.numel(), device=args.device, dtype=dtype) for p in model.parameters()]
        yield moved(f"adamw compiled, bf16 weights, {name} gradients", each * count,
                    as_graph(args, lambda: optimizer.update_all(grads)))
        del optimizer, model, grads


def attention(args):
    for name, s in args.sizes.items():
        forward = 2 * s.batch * s.heads * s.context**2 * s.head_width
        for backend in ("cudnn", "flash") if args.device == "cuda" else ("math",):
            row = {"op": f"attention, {name}, {backend}"}
            for key, backward, work in (("forward", False, forward), ("both", True, 3.5 * forward)):
                ms = training.attention_ms(s, backend, args.device, backward)
                row |= {f"{key}_ms": ms, f"{key}_tflops": work / ms / 1e9}
            yield row


def permute(x, token_of_row):
    return x[token_of_row]


def combine(rows_RD, row_of_slot, weights):
    """Each token's K rows by their weights: a sum that compiles to one kernel."""
    return sum(rows_RD[row_of_slot[:, k]].float() * weights[:, k, None] for k in range(TOP_K)).bfloat16()


def rows(args):
    for tokens in (64,) if args.tiny else (4096, 32768):
        count = tokens * TOP_K
        x = torch.randn(tokens, WIDTH, device=args.device).bfloat16()
        experts = torch.rand(tokens, EXPERTS, device=args.device).topk(TOP_K).indices
        slot_of_row = experts.flatten().sort(stable=True).indices
        token_of_row = slot_of_row // TOP_K
        row_of_slot = torch.argsort(slot_of_row).view(tokens, TOP_K)
        weights = torch.rand(tokens, TOP_K, device=args.device)
        out = torch.empty(count, WIDTH, device=args.device, dtype=torch.bfloat16)
        shape, bytes_moved = f"{tokens} × {WIDTH}, top {TOP_K}", 2 * WIDTH * (tokens + count)
        yield moved(f"permute, {shape}, index_select", bytes_moved,
                    lambda: torch.index_select(x, 0, token_of_row, out=out))
        run = compiled(args, permute)
        yield moved(f"permute, {shape}, compiled", bytes_moved, lambda: run(x, token_of_row))
        run = compiled(args, combine)
        yield moved(f"weighted combine, {shape}, compiled", bytes_moved,
                    lambda: run(out, row_of_slot, weights))


class Cache:
    """Keys and values of each layer, [B, KV heads, context, head width]: a full cache."""

    def __init__(self, s, batch, device):
        shape = (s.layers, batch, s.kv_heads, s.context, s.head_width)
        self.keys, self.values = (list(torch.randn(shape, device=device).bfloat16()) for _ in range(2))
        self.position = torch.full((1,), s.context - 1, device=device)
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device=device)


def next_hidden(block, x, angles, keys, values, position):
    """One layer for one token of each sequence, whose keys and values take their place in the cache."""
    cos, sin = (z[position] for z in angles)
    q, k, v = block.split(x)
    keys.index_copy_(2, position, models.rotate(k, cos, sin))
    values.index_copy_(2, position, v)
    y = F.scaled_dot_product_attention(models.rotate(q, cos, sin), keys, values, enable_gqa=True)
    x = x + block.out(y.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def next_ids(model, x):
    return F.linear(model.norm(x), model.tokens.weight).argmax(-1)


def decoder(model, cache, layer, head):
    """A function that puts the next greedy token of each sequence in the place of its last."""
    def step():
        x = model.tokens(cache.ids)
        for block, keys, values in zip(model.blocks, cache.keys, cache.values):
            x = layer(block, x, model.angles, keys, values, cache.position)
        cache.ids.copy_(head(model, x))
    return step


@torch.no_grad()
def decode(args):
    s = args.sizes["llama-1b"]
    s = dataclasses.replace(s, context=min(1024, s.context))
    model = models.build(s, args.device, torch.bfloat16)
    for batch, how, attends in ((1, "eager", "flash"), (64, "eager", "flash"), (1, "compiled", "flash"),
                                (64, "compiled", "flash"), (1, "compiled", "math")):
        cache = Cache(s, batch, args.device)
        layer, head = next_hidden, next_ids
        if how == "compiled":
            tuned = dict(fullgraph=True, options={"coordinate_descent_tuning": batch == 1})
            layer, head = compiled(args, layer, **tuned), compiled(args, head, **tuned)
        with sdpa_kernel([models.BACKENDS[attends if args.device == "cuda" else "math"]]):
            step = as_graph(args, decoder(model, cache, layer, head))
            ms = statistics.median(models.step_times(step, 5, 10 if args.tiny else 100))
        yield {"op": f"decode, batch {batch}, {how}, {attends}", "ms": ms, "tokens_per_s": 1e3 * batch / ms}


PARTS = {"copy": copy, "adamw": adamw, "attention": attention, "rows": rows, "decode": decode}


def show(row, copied):
    text = f"{row['op']:52}"
    if "gb_per_s" in row:
        text += f" {row['ms']:9.3f} ms {row['gb_per_s']:8.0f} GB/s"
        if copied:
            text += f"  {row['gb_per_s'] / copied:.2f} of a copy"
    elif "tokens_per_s" in row:
        text += f" {row['ms']:9.3f} ms {row['tokens_per_s']:8.0f} tokens/s"
    else:
        text += "".join(f" {row[key + '_ms']:9.3f} ms {row[key + '_tflops']:6.0f} TFLOP/s {key}"
                        for key in ("forward", "both") if key + "_ms" in row)
    print(text + row.get("error", ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to try the script")
    parser.add_argument("--json")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.sizes = {name: models.tiny(s) if args.tiny else s for name, s in models.MODELS.items()}
    torch._dynamo.config.recompile_limit = 64  # one version of adamw for each number of weights
    machine = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{machine}, torch {torch.__version__}")
    table, copied = [], None
    for part in args.parts.split(","):
        try:
            for row in PARTS[part](args):
                copied = row["gb_per_s"] if part == "copy" else copied
                table.append(row)
                show(row, copied)
        except RuntimeError as error:
            table.append({"op": part, "error": str(error).splitlines()[0]})
            show(table[-1], copied)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"name": "ops, PyTorch", "machine": machine, "torch": torch.__version__, "rows": table},
                      f, indent=1)


if __name__ == "__main__":
    main()
