"""The decoders that the GPU peers run, written plainly in PyTorch: dense ones and mixtures of experts.

B sequences, T tokens of each, D model width, H heads, E experts, K experts a token, F hidden features of an
expert, R = B·T·K rows sorted by expert. Residuals are bf16; norms, rotations, softmax and loss work in f32.
"""
import dataclasses
import math
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
            "math": SDPBackend.MATH}


@dataclasses.dataclass(frozen=True)
class Sizes:
    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int  # of the MLP, or of one expert
    context: int
    batch: int  # sequences a microbatch
    vocabulary: int = 50304
    gpt: bool = False  # GPT-2: learned positions, LayerNorm and biases, GELU; else RoPE, RMSNorm and SwiGLU
    experts: int = 0
    top_k: int = 0
    shared: int = 0  # shared experts

    @property
    def head_width(self):
        return self.width // self.heads


MODELS = {
    "gpt2": Sizes(layers=12, width=768, heads=12, kv_heads=12, hidden=3072, context=1024, batch=64, gpt=True),
    "llama-1b": Sizes(layers=16, width=2048, heads=32, kv_heads=8, hidden=8192, context=4096, batch=4,
                      vocabulary=128256),
    "llama-3b": Sizes(layers=28, width=3072, heads=24, kv_heads=8, hidden=8192, context=4096, batch=1,
                      vocabulary=128256),
    "moe-a": Sizes(layers=12, width=1024, heads=16, kv_heads=16, hidden=1408, context=2048, batch=8,
                   experts=16, top_k=2, shared=1),
    "moe-b": Sizes(layers=8, width=2048, heads=16, kv_heads=16, hidden=1024, context=4096, batch=2,
                   experts=64, top_k=6, shared=2),
}


def tiny(sizes):
    """The same kind of model, small enough for a CPU."""
    moe = dict(experts=4, top_k=2, hidden=32) if sizes.experts else dict(hidden=64)
    return dataclasses.replace(sizes, layers=2, width=64, heads=4,
                               kv_heads=4 if sizes.kv_heads == sizes.heads else 2, context=32, batch=2,
                               vocabulary=128, **moe)


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Dispatch(torch.autograd.Function):
    """rows_RD from x_TD: a row is a copy of its token. Backward gathers each token's K rows and sums them."""

    @staticmethod
    def forward(ctx, x, token_of_row, rows_of_token):
        ctx.save_for_backward(token_of_row, rows_of_token)
        return x.index_select(0, token_of_row)

    @staticmethod
    def backward(ctx, d_rows):
        token_of_row, rows_of_token = ctx.saved_tensors
        return d_rows[rows_of_token].sum(1), None, None


class Combine(torch.autograd.Function):
    """The transpose of Dispatch: a token is the sum of its K rows. Backward copies it to each of them."""

    @staticmethod
    def forward(ctx, rows, token_of_row, rows_of_token):
        ctx.save_for_backward(token_of_row, rows_of_token)
        return rows[rows_of_token].sum(1)

    @staticmethod
    def backward(ctx, d_out):
        token_of_row, _ = ctx.saved_tensors
        return d_out.index_select(0, token_of_row), None, None


def grouped_product(rows, weights, ends):
    """Rows of each expert, up to its end, times its matrix; weights as [E, out, in]."""
    weights = weights.to(rows.dtype).transpose(1, 2)
    if hasattr(torch, "_grouped_mm"):
        return torch._grouped_mm(rows, weights, offs=ends)
    starts = [0] + ends.tolist()
    return torch.cat([rows[a:b] @ w for a, b, w in zip(starts, starts[1:], weights)])


class SwiGLU(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GeluMlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Moe(nn.Module):
    """Softmax router in f32, rows sorted by expert, grouped products, and the shared experts as one MLP.

    A row's weight (of its token's K, which sum to 1) multiplies the hidden features: the same sum as if it
    weighted the experts' outputs, but those need not be kept for backward. Nothing waits for the host.
    """

    def __init__(self, s):
        super().__init__()
        self.top_k = s.top_k
        self.router = nn.Parameter(torch.empty(s.experts, s.width))
        self.gate_up = nn.Parameter(torch.empty(s.experts, 2 * s.hidden, s.width))
        self.down = nn.Parameter(torch.empty(s.experts, s.width, s.hidden))
        self.shared = SwiGLU(s.width, s.shared * s.hidden)

    def route(self, x):
        with torch.autocast(x.device.type, enabled=False):
            scores = F.softmax(F.linear(x.float(), self.router.float()), dim=-1)
        weights, experts = scores.topk(self.top_k)
        return weights / weights.sum(-1, keepdim=True), experts

    def forward(self, x_BTD):
        x = x_BTD.flatten(0, 1).bfloat16()
        weights, experts = self.route(x)
        key, slot_of_row = experts.flatten().to(torch.int16).sort()
        numbers = torch.arange(len(key), device=x.device)
        row_of_slot = torch.empty_like(slot_of_row).scatter_(0, slot_of_row, numbers)
        each = torch.arange(len(self.router), device=x.device, dtype=torch.int16)
        ends = torch.searchsorted(key, each, right=True, out_int32=True)
        places = slot_of_row // self.top_k, row_of_slot.view(-1, self.top_k)

        rows = Dispatch.apply(x, *places)
        gate, up = grouped_product(rows, self.gate_up, ends).chunk(2, dim=-1)
        weight_of_row = weights.flatten().index_select(0, slot_of_row)
        hidden = F.silu(gate.float()) * up.float() * weight_of_row[:, None]
        out = Combine.apply(grouped_product(hidden.to(rows.dtype), self.down, ends), *places)
        return out.view_as(x_BTD) + self.shared(x_BTD)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.heads = (s.heads, s.kv_heads, s.kv_heads)
        self.norm1 = nn.LayerNorm(s.width) if s.gpt else nn.RMSNorm(s.width, eps=1e-5)
        self.qkv = nn.Linear(s.width, sum(self.heads) * s.head_width, bias=s.gpt)
        self.out = nn.Linear(s.width, s.width, bias=s.gpt)
        self.norm2 = nn.LayerNorm(s.width) if s.gpt else nn.RMSNorm(s.width, eps=1e-5)
        self.mlp = Moe(s) if s.experts else (GeluMlp if s.gpt else SwiGLU)(s.width, s.hidden)

    def split(self, x_BTD):
        """q, k and v as [B, heads, T, head width]."""
        b, t, _ = x_BTD.shape
        qkv = self.qkv(self.norm1(x_BTD)).view(b, t, sum(self.heads), -1)
        return (z.transpose(1, 2) for z in qkv.split(self.heads, dim=2))

    def forward(self, x_BTD, angles):
        q, k, v = self.split(x_BTD)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        x = x_BTD + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.sizes = s
        self.tokens = nn.Embedding(s.vocabulary, s.width)
        self.positions = nn.Embedding(s.context, s.width) if s.gpt else None
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.LayerNorm(s.width) if s.gpt else nn.RMSNorm(s.width, eps=1e-5)
        half = s.head_width // 2
        turns = torch.outer(torch.arange(s.context), 10000.0 ** (-torch.arange(half) / half))
        self.angles = None if s.gpt else (turns.cos(), turns.sin())  # f32 whatever the weights are
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                last = name.endswith(("out.weight", "down.weight", "down"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * s.layers) if last else 1))

    def embed(self, ids):
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions.weight[: ids.shape[1]]
        return x.bfloat16()

    def loss(self, x_BTD, targets):
        logits = F.linear(self.norm(x_BTD), self.tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def forward(self, ids, targets):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.angles)
        return self.loss(x, targets)


def build(sizes, device, dtype):
    torch.set_default_device(device)
    model = Decoder(sizes).to(dtype)
    torch.set_default_device("cpu")
    return model


def parameters(model):
    """(all, active): weights counted once where tied; of experts a token uses K of E, and all shared ones."""
    total = sum(p.numel() for p in model.parameters())
    s = model.sizes
    idle = sum(p.numel() * (s.experts - s.top_k) // s.experts
               for name, p in model.named_parameters() if name.endswith(("mlp.gate_up", "mlp.down")))
    return total, total - idle


def operations_per_token(model):
    """6·N + 12·L·D·T: N the active parameters; attention as if every token saw all T."""
    s = model.sizes
    return 6 * parameters(model)[1] + 12 * s.layers * s.width * s.context


def step_times(step, warmup, steps):
    """Milliseconds of each step: by CUDA events without waiting between steps, or by the clock on a CPU."""
    for _ in range(warmup):
        step()
    if not torch.cuda.is_available():
        marks = [time.perf_counter()]
        for _ in range(steps):
            step()
            marks.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in zip(marks, marks[1:])]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(marks, marks[1:])]


def median_ms(step, warmup=3, steps=11):
    return statistics.median(step_times(step, warmup, steps))
