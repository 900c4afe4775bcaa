#!/usr/bin/env python3
"""PyTorch's training speed on one GPU: dense decoders and mixtures of experts, full steps on random tokens.

  python3 bench/peers/gpu_training_torch.py [--models gpt2,llama-1b,…] [--settings compiled/master,…]
                                            [--steps 15] [--profile] [--tiny] [--json FILE]

A step is forward, cross-entropy, backward and AdamW, without clipping. Each model is run in several settings;
the fastest counts, all are listed. A setting is HOW/PRECISION[/ATTENTION]:
  HOW        eager; compiled: torch.compile of the whole model; layers: of each layer and of the loss, which
             takes less time; tuned: the same with mode max-autotune-no-cudagraphs
  PRECISION  master: bf16 weights and gradients, AdamW by one compiled kernel a tensor on f32 master weights
             and moments; autocast: f32 weights and gradients, bf16 autocast, torch's fused AdamW
  ATTENTION  cudnn or flash, the backend of scaled_dot_product_attention; by default the one whose forward and
             backward of the model's shape is the faster
MFU is of 989 TFLOP/s (bf16, dense, of an H100 or H200) at 6·N + 12·layers·width·T operations a token. N is
all parameters: tables, norms, biases and positions too, a table that is also the head once; of experts those
that a token uses, top-k and shared. Routers are not trained and not balanced. `tuned` takes minutes a model.
Peak memory is torch.cuda.max_memory_allocated of the timed steps; "first s" holds what compiling takes. Needs
the package `torch`, 2.11 or later.
"""
import argparse
import contextlib
import gc
import json
import statistics
import sys
import time

import torch
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

import gpu_models_torch as models

PEAK = 989e12  # bf16 operations a second, dense, of the data sheet
LR, BETAS, EPS, DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1
SETTINGS = "compiled/master,compiled/autocast,layers/master,eager/master,tuned/master"


def adamw(weight, grad, master, m, v, corrections, decay):
    """One AdamW update in f32; the bf16 weight is its rounding. All are flat; corrections are 1 − βᵗ."""
    g = grad.float()
    m.lerp_(g, 1 - BETAS[0])
    v.lerp_(g * g, 1 - BETAS[1])
    master.mul_(1 - LR * decay)
    master.sub_(LR * (m / corrections[0]) / ((v / corrections[1]).sqrt() + EPS))
    weight.copy_(master)


class MasterAdamW:
    """AdamW of bf16 weights with f32 master weights and moments: one pass over memory, 28 bytes a weight."""

    def __init__(self, weights, compiled):
        self.weights = list(weights)
        self.states = [(p.data.view(-1), *self.new_state(p), DECAY if p.dim() > 1 else 0.0)
                       for p in self.weights]
        self.update = torch.compile(adamw, dynamic=False, fullgraph=True) if compiled else adamw
        self.powers = torch.ones(2, device=self.weights[0].device)
        self.betas = torch.tensor(BETAS, device=self.powers.device)

    @staticmethod
    def new_state(p):
        master = p.data.float().view(-1)
        return master, torch.zeros_like(master), torch.zeros_like(master)

    @torch.no_grad()
    def update_all(self, grads):
        self.powers *= self.betas
        corrections = 1 - self.powers
        for grad, (weight, *state) in zip(grads, self.states):
            self.update(weight, grad.view(-1), *state[:3], corrections, state[3])

    def step(self):
        self.update_all(p.grad for p in self.weights)

    def zero_grad(self):
        for p in self.weights:
            p.grad = None


def fused_adamw(weights):
    weights = list(weights)
    groups = [dict(params=[p for p in weights if p.dim() > 1], weight_decay=DECAY),
              dict(params=[p for p in weights if p.dim() <= 1], weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)


def compile_parts(model, how):
    mode = "max-autotune-no-cudagraphs" if how == "tuned" else "default"
    options = dict(mode=mode, fullgraph=True, dynamic=False)
    if how == "compiled":
        return torch.compile(model, **options)
    if how != "eager":
        for block in model.blocks:
            block.compile(**options)
        model.loss = torch.compile(model.loss, **options)
    return model


def training_step(model, how, precision, device):
    """A function that makes one whole step and returns its loss."""
    s = model.sizes
    autocast = precision == "autocast"
    optimizer = (fused_adamw(model.parameters()) if autocast
                 else MasterAdamW(model.parameters(), compiled=device == "cuda"))
    run = compile_parts(model, how)

    def step():
        ids, targets = torch.randint(s.vocabulary, (2, s.batch, s.context), device=device)
        with torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = run(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def attention_ms(s, backend, device, backward=True):
    """Milliseconds of causal attention of the model's shape; q, k and v lie in one tensor, as there."""
    heads = (s.heads, s.kv_heads, s.kv_heads)
    qkv = torch.randn(s.batch, s.context, sum(heads), s.head_width, device=device, dtype=torch.bfloat16)
    q, k, v = (z.transpose(1, 2).requires_grad_() for z in qkv.split(heads, dim=2))
    dy = torch.randn(s.batch, s.context, s.heads, s.head_width, device=device, dtype=torch.bfloat16)

    def call():
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=s.heads != s.kv_heads)
        if backward:
            torch.autograd.grad(y, (q, k, v), dy.transpose(1, 2))

    with sdpa_kernel([models.BACKENDS[backend]]):
        return models.median_ms(call)


def faster_attention(s, device):
    if device == "cpu":
        return "math"
    return min(("cudnn", "flash"), key=lambda backend: attention_ms(s, backend, device))


def print_profile(step):
    """The kernels of one step that take most of it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    kernels = sorted(profile.key_averages(), key=lambda k: -k.self_device_time_total)
    total = sum(k.self_device_time_total for k in kernels)
    for k in kernels[:24]:
        print(f"    {k.self_device_time_total / 1e3:8.2f} ms {100 * k.self_device_time_total / total:5.1f} %"
              f"  {k.count:4} × {k.key[:80]}")


def measure(args, s, how, precision, attention):
    """One row: the model trained in one setting."""
    device = args.device
    torch.manual_seed(1)
    model = models.build(s, device, torch.float32 if precision == "autocast" else torch.bfloat16)
    step = training_step(model, how, precision, device)
    begin = time.perf_counter()
    with sdpa_kernel([models.BACKENDS[attention]]):
        first = step().item()
        first_s = time.perf_counter() - begin
        times = models.step_times(step, args.warmup, args.steps)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        last = step().item()
        if args.profile and device == "cuda":
            print_profile(step)
    total, active = models.parameters(model)
    tokens_per_s = s.batch * s.context / statistics.median(times) * 1e3
    return {"parameters": total, "active_parameters": active,
            "operations_per_token": models.operations_per_token(model), "ms": statistics.median(times),
            "ms_min": min(times), "ms_max": max(times), "tokens_per_s": tokens_per_s,
            "mfu_percent": 100 * tokens_per_s * models.operations_per_token(model) / PEAK,
            "peak_gib": peak / 2**30, "first_step_s": first_s, "loss": [first, last]}


def show(row):
    head = f"{row['model']:9} {row['how']:9} {row['precision']:9} {row['attention']:6}"
    if "error" in row:
        print(f"{head} {row['error'][:75]}", flush=True)
        return
    print(f"{head} {row['tokens_per_s']:10,.0f} {row['ms']:8.2f} {row['mfu_percent']:6.1f} "
          f"{row['peak_gib']:7.1f} {row['first_step_s']:7.1f}   "
          f"{row['loss'][0]:.3f} → {row['loss'][1]:.3f}", flush=True)


def run_model(args, name):
    s = models.tiny(models.MODELS[name]) if args.tiny else models.MODELS[name]
    faster = faster_attention(s, args.device)
    rows = []
    for setting in args.settings.split(","):
        how, precision, attention = (setting.split("/") + [faster])[:3]
        row = {"model": name, "how": how, "precision": precision, "attention": attention}
        try:
            row |= measure(args, s, how, precision, attention)
        except RuntimeError as error:  # a setting that needs more memory than there is
            row["error"] = str(error).splitlines()[0]
        show(row)
        rows.append(row)
        torch._dynamo.reset()
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(models.MODELS))
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--profile", action="store_true", help="the longest kernels of each setting's step")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to try the script")
    parser.add_argument("--json")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64  # one version of adamw for each number of weights
    machine = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{machine}, torch {torch.__version__}")
    print(f"{'model':9} {'how':9} {'precision':9} {'atten.':6} {'tokens/s':>10} {'ms':>8} {'MFU %':>6} "
          f"{'GiB':>7} {'first s':>7}   loss")
    rows = []
    for name in args.models.split(","):
        rows += run_model(args, name)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as f:
                json.dump({"name": "training, PyTorch", "machine": machine, "torch": torch.__version__,
                           "rows": rows}, f, indent=1)
    print("fastest of each model:")
    ran = {row["model"] for row in rows if "error" not in row}
    for name in filter(ran.__contains__, args.models.split(",")):
        show(max((row for row in rows if row["model"] == name and "error" not in row),
                 key=lambda row: row["tokens_per_s"]))
    return 0 if ran == set(args.models.split(",")) else 1


if __name__ == "__main__":
    sys.exit(main())
