"""Models like DeepSeek-V3, for make_golden.py: latent attention, and multi-token prediction."""

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from models import (CONTEXT, HEADS, HIDDEN, IGNORE, LAYERS, NORM_EPS, THETA, VOCABULARY, WIDTH, LlamaMoe, Moe,
                    Rotary)


class DeepSeek(LlamaMoe):
    """Latent attention, with a latent of the queries; a dense layer, then experts by sigmoid scores."""
    NOPE, ROPE, VALUES, Q_RANK, KV_RANK = 3, 4, 2, 5, 6
    options = {"sigmoid": True, "normalise": True, "scaling": 1.5, "shared": True}
    low_rank_queries = True
    depths = 0  # of multi-token prediction

    def __init__(self):
        self.module = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS + self.depths, num_attention_heads=HEADS,
            num_key_value_heads=HEADS, max_position_embeddings=CONTEXT,
            rms_norm_eps=NORM_EPS, kv_lora_rank=self.KV_RANK, first_k_dense_replace=LAYERS + self.depths,
            q_lora_rank=self.Q_RANK if self.low_rank_queries else None, qk_nope_head_dim=self.NOPE,
            qk_rope_head_dim=self.ROPE, v_head_dim=self.VALUES, rope_theta=THETA, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=None, attn_implementation="sdpa"))
        body = self.module.model
        body.rotary_emb = Rotary(self.ROPE)
        body.norm = nn.RMSNorm(WIDTH, NORM_EPS)  # DeepseekV3RMSNorm computes in f32
        for i, layer in enumerate(body.layers):
            layer.input_layernorm = nn.RMSNorm(WIDTH, NORM_EPS)
            layer.post_attention_layernorm = nn.RMSNorm(WIDTH, NORM_EPS)
            attention = layer.self_attn
            attention.kv_a_layernorm = nn.RMSNorm(self.KV_RANK, attention.kv_a_layernorm.variance_epsilon)
            if self.low_rank_queries:
                attention.q_a_layernorm = nn.RMSNorm(self.Q_RANK, attention.q_a_layernorm.variance_epsilon)
            if i >= self.first_moe:
                layer.mlp = Moe(**self.options)
        self.add_depths(body.layers[LAYERS:])
        body.config.num_hidden_layers = LAYERS  # that run one after the other
        self.module.double()

    def add_depths(self, layers):
        pass

    @property
    def config(self):
        return super().config.replace("kv_heads = 2", f"""attention = "mla"
q_lora_rank = {self.Q_RANK if self.low_rank_queries else 0}
kv_lora_rank = {self.KV_RANK}
qk_nope_head_dim = {self.NOPE}
qk_rope_head_dim = {self.ROPE}
v_head_dim = {self.VALUES}""")

    def attention_names(self, get, theirs, ours):
        kv_a, k_rope = get(theirs + "kv_a_proj_with_mqa.weight").split((self.KV_RANK, self.ROPE))
        out = {ours + "kv_a.w": kv_a, ours + "k_rope.w": self.halves(k_rope, 0),
               ours + "kv_a_norm.w": get(theirs + "kv_a_layernorm.weight"),
               ours + "kv_b.w": get(theirs + "kv_b_proj.weight"), ours + "o.w": get(theirs + "o_proj.weight")}
        if not self.low_rank_queries:
            return out | {ours + "q.w": self.halves(get(theirs + "q_proj.weight"), self.NOPE)}
        return out | {ours + "q_a.w": get(theirs + "q_a_proj.weight"),
                      ours + "q_a_norm.w": get(theirs + "q_a_layernorm.weight"),
                      ours + "q_b.w": self.halves(get(theirs + "q_b_proj.weight"), self.NOPE)}

    def halves(self, w, still):
        """Rows of each head behind `still`: theirs are pairs, ours all first ones, then all second."""
        heads = w.unflatten(0, (-1, still + self.ROPE))
        turning = heads[:, still:].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return torch.cat((heads[:, :still], turning), dim=1).flatten(0, 1)


class DeepSeekQueries(DeepSeek):
    """Queries come straight from the stream, as in DeepSeek-V2-Lite."""
    low_rank_queries = False


class DeepSeekAhead(DeepSeek):
    """Multi-token prediction of two depths (DeepSeek-V3, section 2.2): the layers behind the last, with the
    names of DeepSeek's checkpoints."""
    depths = 2
    weight = 0.6

    def add_depths(self, layers):
        for layer in layers:
            for name in ("enorm", "hnorm", "last_norm"):
                setattr(layer, name, nn.RMSNorm(WIDTH, NORM_EPS))
            layer.eh_proj = nn.Linear(2 * WIDTH, WIDTH, bias=False)

        def keep_stream(_, inputs):
            self.stream = inputs[0]

        self.module.model.norm.register_forward_pre_hook(keep_stream)

    @property
    def config(self):
        keys = f"tied = false\nmtp = {self.depths}\nmtp_weight = {self.weight}"
        return super().config.replace("tied = false", keys)

    def forward(self, tokens):
        self.module(tokens)  # leaves the stream behind the last layer
        body, stream = self.module.model, self.stream
        logits = self.module.lm_head(body.norm(stream))
        positions = torch.arange(CONTEXT)[None]
        self.ahead = []
        for k, layer in enumerate(body.layers[LAYERS:], 1):
            embedded = body.embed_tokens(F.pad(tokens[:, k:], (0, k)))  # token 0 behind the end
            stream = layer.eh_proj(torch.cat((layer.enorm(embedded), layer.hnorm(stream)), dim=-1))
            stream = layer(stream, position_ids=positions,
                           position_embeddings=body.rotary_emb(stream, positions))
            self.ahead.append(self.module.lm_head(layer.last_norm(stream)))
        balance = sum(m.balance_loss for m in self.module.modules() if isinstance(m, Moe))
        return logits, balance

    def mtp_loss(self, targets):
        """The mean over depths of the summed losses: row i of depth k predicts the target of row i + k."""
        sums = [F.cross_entropy(logits[:, :-k].flatten(0, 1), targets[:, k:].flatten(), ignore_index=IGNORE,
                                reduction="sum") for k, logits in enumerate(self.ahead, 1)]
        return sum(sums) / self.depths

    def names(self, get):
        out = super().names(get)
        for k in range(self.depths):
            theirs, ours = f"model.layers.{LAYERS + k}.", f"mtp.{k}."
            out |= self.layer_names(get, LAYERS + k, ours)
            of_embedding, of_stream = get(theirs + "eh_proj.weight").split(WIDTH, dim=1)
            out |= {ours + "from_embedding.w": of_embedding, ours + "from_stream.w": of_stream,
                    ours + "embedding_norm.w": get(theirs + "enorm.weight"),
                    ours + "stream_norm.w": get(theirs + "hnorm.weight"),
                    ours + "norm.w": get(theirs + "last_norm.weight")}
        return out
