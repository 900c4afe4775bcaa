"""Models like GPT-2 and Llama, and mixtures of experts, for make_golden.py."""

import math

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

STEPS, SEQUENCES, CONTEXT, VOCABULARY, WIDTH, LAYERS, HEADS = 3, 3, 7, 11, 8, 2, 4
IGNORE = -1
LR, BETAS, EPS, DECAY, CLIP = 1e-2, (0.9, 0.95), 1e-8, 0.1, 0.5
NORM_EPS, THETA = 1e-5, 500.0
HIDDEN = 10

CONFIG = f"""[model]
layers = {LAYERS}
width = {WIDTH}
heads = {HEADS}
context = {CONTEXT}
norm_eps = {NORM_EPS}
rope_theta = {THETA}
mlp_width = {HIDDEN}
%s
[train]
steps = {STEPS}
batch = {SEQUENCES}
microbatch = 1
dtype = "f64"
schedule = "overlapped"
[optimizer]
lr = {LR}
warmup = 0
decay = "constant"
beta1 = {BETAS[0]}
beta2 = {BETAS[1]}
eps = {EPS}
weight_decay = {DECAY}
clip = {CLIP}
"""


# forward gives logits and the sum of the balance losses; names gives {our name: tensor}, from get(name in the
# module).

class Gpt2:
    """norm = layernorm, learned positions, GELU by tanh, biases, tied."""
    config = CONFIG % """kv_heads = 4
norm = "layernorm"
positions = "learned"
mlp = "gelu_tanh"
bias = true
tied = true"""

    def __init__(self):
        self.module = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            n_inner=HIDDEN, activation_function="gelu_new", layer_norm_epsilon=NORM_EPS, resid_pdrop=0,
            embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
            attn_implementation="sdpa")).double()

    def forward(self, tokens):
        return self.module(tokens).logits, torch.zeros((), dtype=torch.float64)

    def names(self, get):
        out = {"embedding.w": get("transformer.wte.weight"), "positions.w": get("transformer.wpe.weight"),
               "norm.w": get("transformer.ln_f.weight"), "norm.b": get("transformer.ln_f.bias")}
        for i in range(LAYERS):
            theirs, ours = f"transformer.h.{i}.", f"layers.{i}."
            for a, b in {"ln_1": "attention_norm", "ln_2": "mlp_norm"}.items():
                out[f"{ours}{b}.w"] = get(f"{theirs}{a}.weight")
                out[f"{ours}{b}.b"] = get(f"{theirs}{a}.bias")
            # Conv1D keeps [in, out]; c_attn makes q, k and v at once.
            attention = zip("qkv", get(theirs + "attn.c_attn.weight").T.split(WIDTH),
                            get(theirs + "attn.c_attn.bias").split(WIDTH))
            for letter, w, b in attention:
                out[f"{ours}attention.{letter}.w"], out[f"{ours}attention.{letter}.b"] = w, b
            linears = {"attn.c_proj": "attention.o", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
            for a, b in linears.items():
                out[f"{ours}{b}.w"] = get(f"{theirs}{a}.weight").T
                out[f"{ours}{b}.b"] = get(f"{theirs}{a}.bias")
        return out


class Rotary(nn.Module):
    """Hugging Face's rotation angles, which it would compute in f32."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, x, position_ids):
        half = torch.arange(0, self.columns, 2, dtype=torch.float64) / self.columns
        angles = position_ids[..., None].double() * THETA ** -half
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


class Llama:
    """norm = rmsnorm, rope, SwiGLU, two query heads for each KV head, untied."""
    config = CONFIG % """kv_heads = 2
norm = "rmsnorm"
positions = "rope"
mlp = "swiglu"
tied = false"""
    moe = False

    def __init__(self):
        self.module = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=CONTEXT,
            rms_norm_eps=NORM_EPS, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
            attn_implementation="sdpa"))
        body = self.module.model
        body.rotary_emb = Rotary(WIDTH // HEADS)
        body.norm = nn.RMSNorm(WIDTH, NORM_EPS)  # LlamaRMSNorm computes in f32
        for layer in body.layers:
            layer.input_layernorm = nn.RMSNorm(WIDTH, NORM_EPS)
            layer.post_attention_layernorm = nn.RMSNorm(WIDTH, NORM_EPS)
        self.module.double()

    def forward(self, tokens):
        logits = self.module(tokens).logits
        layers = [m for m in self.module.modules() if isinstance(m, Moe)]
        self.z_losses = sum(m.z_loss for m in layers)
        return logits, sum((m.balance_loss for m in layers), torch.zeros((), dtype=torch.float64))

    def names(self, get):
        out = {"embedding.w": get("model.embed_tokens.weight"), "norm.w": get("model.norm.weight"),
               "head.w": get("lm_head.weight")}
        for i in range(LAYERS):
            out |= self.layer_names(get, i, f"layers.{i}.")
        return out

    def layer_names(self, get, i, ours):
        theirs, mlp = f"model.layers.{i}.", self.module.model.layers[i].mlp
        out = {ours + "attention_norm.w": get(theirs + "input_layernorm.weight"),
               ours + "mlp_norm.w": get(theirs + "post_attention_layernorm.weight")}
        out |= self.attention_names(get, theirs + "self_attn.", ours + "attention.")
        if isinstance(mlp, Moe):
            return out | {f"{ours}moe.{Moe.NAMES[name]}": get(f"{theirs}mlp.{name}")
                          for name, _ in mlp.named_parameters()}
        gate_and_up = [get(f"{theirs}mlp.{m}_proj.weight") for m in ("gate", "up")]
        return out | {ours + "mlp.gate_up.w": torch.cat(gate_and_up),
                      ours + "mlp.down.w": get(theirs + "mlp.down_proj.weight")}

    def attention_names(self, get, theirs, ours):
        return {f"{ours}{letter}.w": get(f"{theirs}{letter}_proj.weight") for letter in "qkvo"}


def swiglu(x, gate_up, down):
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down.T


class Moe(nn.Module):
    """Top-k experts and a shared one, one token at a time; the balance loss of DeepSeek-V3, section 2.1.2."""
    EXPERTS, TOP_K, EXPERT_WIDTH = 4, 2, 5
    NAMES = {"router": "router.w", "gate_up": "experts.gate_up", "down": "experts.down",
             "shared_gate_up": "shared.gate_up.w", "shared_down": "shared.down.w"}  # ours

    def __init__(self, sigmoid, normalise, scaling, shared, groups=1, top_groups=1, bias_rate=0.0,
                 capacity=0.0):
        super().__init__()
        self.sigmoid, self.normalise, self.scaling = sigmoid, normalise, scaling
        self.groups, self.top_groups, self.bias_rate, self.capacity = groups, top_groups, bias_rate, capacity
        self.bias = torch.zeros(self.EXPERTS, dtype=torch.float64)
        self.router = nn.Parameter(torch.empty(self.EXPERTS, WIDTH))
        self.gate_up = nn.Parameter(torch.empty(self.EXPERTS, 2 * self.EXPERT_WIDTH, WIDTH))
        self.down = nn.Parameter(torch.empty(self.EXPERTS, WIDTH, self.EXPERT_WIDTH))
        self.has_shared = shared
        if shared:
            self.register_parameter("shared_gate_up", nn.Parameter(torch.empty(2 * self.EXPERT_WIDTH, WIDTH)))
            self.register_parameter("shared_down", nn.Parameter(torch.empty(WIDTH, self.EXPERT_WIDTH)))
        self.double()

    def forward(self, x_BTD):
        logits = x_BTD @ self.router.T
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(-1)
        experts = self.choice(scores)
        chosen = scores.gather(-1, experts)
        if self.groups > 1:
            self.check_choice(x_BTD, experts)
        self.load = F.one_hot(experts, self.EXPERTS).sum((0, 1, 2))
        self.z_loss = logits.logsumexp(-1).square().sum()
        weights = (chosen / chosen.sum(-1, keepdim=True) if self.normalise else chosen) * self.scaling
        self.balance_loss = self.sum_of_balance_losses(scores, experts)
        rows = []
        for sequence in range(x_BTD.shape[0]):
            room = self.room(x_BTD.shape[1])
            for t in range(x_BTD.shape[1]):
                x, at = x_BTD[sequence, t], (sequence, t)
                y = torch.zeros_like(x)
                for k, e in enumerate(experts[at].tolist()):
                    room[e] -= 1
                    if room[e] >= 0:
                        y = y + weights[at][k] * swiglu(x, self.gate_up[e], self.down[e])
                rows.append(y + swiglu(x, self.shared_gate_up, self.shared_down) if self.has_shared else y)
        return torch.stack(rows).view_as(x_BTD)

    def room(self, tokens):
        """How many tokens of a sequence each expert takes."""
        most = math.ceil(self.capacity * tokens * self.TOP_K / self.EXPERTS) if self.capacity else tokens
        return [most] * self.EXPERTS

    def choice(self, scores):
        biased = scores + self.bias
        grouped = biased.unflatten(-1, (self.groups, -1))
        if self.groups > 1:
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.top_groups, dim=-1).indices
            kept = torch.zeros(grouped.shape[:-1], dtype=torch.bool).scatter(-1, best, True)
            biased = grouped.masked_fill(~kept[..., None], -math.inf).flatten(-2)
        return biased.topk(self.TOP_K, dim=-1).indices

    @torch.no_grad()
    def check_choice(self, x_BTD, experts):
        """Hugging Face's router, which computes in f32, chooses the same."""
        theirs = DeepseekV3TopkRouter(transformers.DeepseekV3Config(
            hidden_size=WIDTH, n_routed_experts=self.EXPERTS, num_experts_per_tok=self.TOP_K,
            n_group=self.groups, topk_group=self.top_groups, norm_topk_prob=self.normalise,
            routed_scaling_factor=self.scaling))
        theirs.weight.copy_(self.router)
        theirs.e_score_correction_bias.copy_(self.bias)
        _, _, chosen = theirs(x_BTD)
        assert torch.equal(chosen.sort(-1).values, experts.flatten(0, 1).sort(-1).values)

    def end_step(self):
        load = self.load.double()
        self.bias += self.bias_rate * torch.sign(load.mean() - load)

    def sum_of_balance_losses(self, scores, experts):
        total = torch.zeros((), dtype=torch.float64)
        for s, chosen in zip(scores, experts):
            n = s.shape[0]
            f = self.EXPERTS / (self.TOP_K * n) * F.one_hot(chosen, self.EXPERTS).sum((0, 1)).double()
            p = (s / s.sum(-1, keepdim=True)).mean(0)
            total = total + n * (f * p).sum()
        return total


class LlamaMoe(Llama):
    """The first layer's MLP is dense; softmax scores, normalised weights, a shared expert."""
    coefficient = 0.05
    losses = {}  # coefficients of others
    routing_keys = ("groups", "top_groups", "bias_rate", "capacity", "z_loss")
    options = {"sigmoid": False, "normalise": True, "scaling": 1.0, "shared": True}
    first_moe = 1

    def __init__(self):
        super().__init__()
        for layer in self.module.model.layers[self.first_moe:]:
            layer.mlp = Moe(**self.options)

    @property
    def config(self):
        o = self.options
        return Llama.config.replace('mlp = "swiglu"', 'mlp = "moe"') + f"""[moe]
experts = {Moe.EXPERTS}
top_k = {Moe.TOP_K}
expert_width = {Moe.EXPERT_WIDTH}
shared_experts = {int(o["shared"])}
dense_layers = {self.first_moe}
scores = "{"sigmoid" if o["sigmoid"] else "softmax"}"
normalise = {str(o["normalise"]).lower()}
scaling = {o["scaling"]}
balance_loss = {self.coefficient}
""" + "".join(f"{key} = {value}\n" for key, value in (o | self.losses).items() if key in self.routing_keys)


class LlamaMoeSigmoid(LlamaMoe):
    """Every layer has experts; sigmoid scores, scaled, not normalised; no shared expert."""
    options = {"sigmoid": True, "normalise": False, "scaling": 1.5, "shared": False}
    first_moe = 0


class LlamaMoeDeepseek(LlamaMoe):
    """Sigmoid scores, biased and chosen within groups (DeepSeek-V3), a z-loss, and a capacity."""
    options = {"sigmoid": True, "normalise": True, "scaling": 2.5, "shared": True, "groups": 2,
               "top_groups": 1, "bias_rate": 0.05, "capacity": 1.0}
    losses = {"z_loss": 0.03}
