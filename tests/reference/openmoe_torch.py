# SPDX-License-Identifier: Apache-2.0
"""OpenMoE in plain PyTorch: the reference that tests, training and evaluation of the demo model share.

One forward pass serves training and inference. What is unlike other models: attention scores are not divided
by sqrt(head_dim); an FFN has three factors, with a gate twice as wide as the rest; the router takes a
softmax over all experts in float32 and its two weights are not renormalised; an always-on extra FFN runs after
the experts; and an expert has a capacity beyond which its tokens are dropped.

`python3 tests/reference/openmoe_torch.py --golden DIR` compares it with a folder of golden numbers.
"""
import argparse
import json
import math
import os

import torch
import torch.nn.functional as F
from torch import nn

DEFAULTS = {"router_topk": 2, "router_capacity_factor_train": 1.25, "router_capacity_factor_eval": 2.0,
            "router_min_capacity": 4, "router_drop_tks": True, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


class FFN(nn.Module):
    """down( g1 * silu(g2) * up(h) ), where gate gives g1 and g2 side by side."""

    def __init__(self, dim, inner):
        super().__init__()
        self.gate_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, h):
        g1, g2 = self.gate_proj(h).chunk(2, -1)
        return self.down_proj(g1 * F.silu(g2) * self.up_proj(h))


class Experts(nn.Module):
    """All experts of a layer, used as x @ W[e]."""

    def __init__(self, experts, dim, inner):
        super().__init__()
        self.wi_gate = nn.Parameter(torch.empty(experts, dim, 2 * inner))
        self.wi_up = nn.Parameter(torch.empty(experts, dim, inner))
        self.wo = nn.Parameter(torch.empty(experts, inner, dim))

    def forward(self, h, e):
        g1, g2 = (h @ self.wi_gate[e]).chunk(2, -1)
        return (g1 * F.silu(g2) * (h @ self.wi_up[e])) @ self.wo[e]


def capacity_of(tokens, experts, factor, topk, least):
    """How many tokens one expert takes in a forward call of `tokens` tokens."""
    capacity = math.floor(topk * factor * tokens / experts)
    capacity += capacity % 2
    return max(capacity, least)


class MoE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.experts_n, self.topk = cfg["num_experts"], cfg["router_topk"]
        self.cfg = cfg
        self.gate_weight = nn.Parameter(torch.empty(self.experts_n, cfg["hidden_size"]))
        self.experts = Experts(self.experts_n, cfg["hidden_size"], cfg["intermediate_size"])

    def keep(self, chosen, capacity):
        """kept[n, k]: all first choices take their places before any second choice, each in order."""
        flat = F.one_hot(chosen.t().reshape(-1), self.experts_n)            # [topk * n, experts]
        place = (flat.cumsum(0) * flat).sum(-1) - 1
        return (place < capacity).view(self.topk, -1).t()

    def forward(self, h, mode, record=None):
        """h [n, hidden], valid tokens only. Returns the output and the two auxiliary losses."""
        logits = h.float() @ self.gate_weight.float().t()                   # [n, experts]
        probs = logits.softmax(-1)
        # a stable sort, so that ties go to the lower index
        chosen = probs.sort(stable=True, dim=-1, descending=True).indices[:, :self.topk]
        weights = probs.gather(1, chosen)
        factor = self.cfg["router_capacity_factor_" + ("train" if mode == "train" else "eval")]
        capacity = h.shape[0] if mode == "dropless" else capacity_of(
            h.shape[0], self.experts_n, factor, self.topk, self.cfg["router_min_capacity"])
        kept = self.keep(chosen, capacity)
        out = torch.zeros_like(h)
        for e in range(self.experts_n):
            token, pick = ((chosen == e) & kept).nonzero(as_tuple=True)
            if token.numel():
                y = self.experts(h.index_select(0, token), e)
                out = out.index_add(0, token, (y * weights[token, pick, None]).to(out.dtype))
        if record is not None:
            record.append({"experts": chosen, "weights": weights, "kept": kept, "capacity": capacity})
        # balance: share of first and second choices times mean probability, 1 when even
        share = F.one_hot(chosen, self.experts_n).float().sum(1).mean(0) / self.topk
        balance = self.experts_n * (share * probs.mean(0)).sum()
        z = logits.logsumexp(-1).pow(2).mean()
        return out, balance, z


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        dim, self.head_dim = cfg["hidden_size"], cfg["head_dim"]
        self.heads, self.kv_heads = cfg["num_attention_heads"], cfg["num_key_value_heads"]
        self.q_proj = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dim, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, dim, bias=False)

    def forward(self, a, cos, sin, cache, past, mask):
        b, t, _ = a.shape
        split = lambda x, n: x.view(b, t, n, self.head_dim).transpose(1, 2)
        q, k = rope(split(self.q_proj(a), self.heads), cos, sin), rope(split(self.k_proj(a), self.kv_heads), cos, sin)
        v = split(self.v_proj(a), self.kv_heads)
        if cache is not None:           # cache: [2, batch, kv heads, room, head_dim]
            cache[0, :, :, past:past + t], cache[1, :, :, past:past + t] = k, v
            k, v = cache[0, :, :, :past + t], cache[1, :, :, :past + t]
        if self.kv_heads != self.heads:
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        if mask is None and past and t > 1:     # a chunk after cached tokens sees all of them
            mask = torch.ones(t, past + t, dtype=torch.bool, device=a.device).tril(past)
        causal = mask is None and t > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=1.0)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


def rope(x, cos, sin):
    """Half rotation: dimension d pairs with d + head_dim / 2. cos, sin [t or b,1,t, head_dim / 2]."""
    x1, x2 = x.chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, cfg, index):
        super().__init__()
        dim, inner, eps = cfg["hidden_size"], cfg["intermediate_size"], cfg["rms_norm_eps"]
        self.is_moe = (index + 1) % cfg["moe_layer_interval"] == 0
        self.input_layernorm = RMSNorm(dim, eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = RMSNorm(dim, eps)
        self.mlp = MoE(cfg) if self.is_moe else FFN(dim, inner)
        if self.is_moe:
            self.pre_extra_mlp_layernorm = RMSNorm(dim, eps)
            self.extra_mlp = FFN(dim, inner)

    def forward(self, x, cos, sin, cache, past, mask, valid, mode, record, aux):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, past, mask)
        h = self.post_attention_layernorm(x)
        if not self.is_moe:
            return x + self.mlp(h)
        flat = h.reshape(-1, h.shape[-1])
        out, balance, z = self.mlp(flat if valid is None else flat.index_select(0, valid), mode, record)
        aux.append((balance, z))
        if valid is not None:
            out = torch.zeros_like(flat).index_copy(0, valid, out)
        x = x + out.view_as(x)
        return x + self.extra_mlp(self.pre_extra_mlp_layernorm(x))


class OpenMoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.cfg = cfg = {**DEFAULTS, **config}
        cfg.setdefault("num_key_value_heads", cfg["num_attention_heads"])
        body = nn.Module()
        body.embed_tokens = nn.Embedding(cfg["vocab_size"], cfg["hidden_size"])
        body.layers = nn.ModuleList(Layer(cfg, i) for i in range(cfg["num_hidden_layers"]))
        body.norm = RMSNorm(cfg["hidden_size"], cfg["rms_norm_eps"])
        self.model = body
        self.lm_head = nn.Linear(cfg["hidden_size"], cfg["vocab_size"], bias=False)
        half = cfg["head_dim"] // 2
        inverse = cfg["rope_theta"] ** -(torch.arange(half).float() / half)
        angle = torch.arange(cfg["max_position_embeddings"]).float()[:, None] * inverse
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def new_cache(self, batch, room):
        c = self.cfg
        shape = (2, batch, c["num_key_value_heads"], room, c["head_dim"])
        return [torch.zeros(shape, dtype=self.lm_head.weight.dtype, device=self.cos.device)
                for _ in self.model.layers]

    def forward(self, ids, mode="dropless", valid=None, cache=None, past=0, positions=None, mask=None, record=None,
                head=True):
        """ids [b, t]. `valid`: flat indices of the tokens that are not padding (all, where None). `positions`
        and `mask` serve batches whose rows stand at different places. Returns (logits or states, aux losses)."""
        if positions is None:
            cos, sin = self.cos[past:past + ids.shape[1]], self.sin[past:past + ids.shape[1]]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x, aux = self.model.embed_tokens(ids), []
        for i, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, cache[i] if cache else None, past, mask, valid, mode, record, aux)
        x = self.model.norm(x)
        return (self.lm_head(x).float() if head else x), aux


def load(folder, dtype=torch.float32):
    """A model from a folder with config.json and model.safetensors, computing in `dtype`."""
    from safetensors.torch import load_file
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        model = OpenMoE(json.load(f))
    model.load_state_dict({k: v.to(dtype) for k, v in load_file(os.path.join(folder, "model.safetensors")).items()})
    return model.to(dtype).eval()


@torch.no_grad()
def greedy(model, ids, count, mode):
    """Greedy continuation of one sequence, one token at a time with a cache."""
    cache, out = model.new_cache(1, len(ids) + count), []
    step, past = torch.tensor([ids]), 0
    for _ in range(count):
        logits, _ = model(step, mode, cache=cache, past=past)
        past += step.shape[1]
        out.append(int(logits[0, -1].argmax()))
        step = torch.tensor([out[-1:]])
    return out


@torch.no_grad()
def check_golden(folder):
    """The largest differences from golden.json; routing and greedy tokens must agree exactly."""
    model = load(folder)
    with open(os.path.join(folder, "golden.json"), encoding="utf-8") as f:
        golden = json.load(f)
    worst, wrong = 0.0, 0
    batch = golden["batch"]
    runs = [(c, [c["input_ids"]], [c["last_logits"]], [c["logprob_of_inputs"]]) for c in golden["cases"]]
    runs.append((batch, batch["input_ids"], batch["last_logits"], batch.get("logprob_of_inputs")))
    for case, rows, last, logprobs in runs:
        record = []
        logits, _ = model(torch.tensor(rows), case["mode"], record=record)
        worst = max(worst, (logits[:, -1] - torch.tensor(last)).abs().max().item())
        if logprobs and logprobs[0]:
            lp = logits.log_softmax(-1)[:, :-1].gather(2, torch.tensor(rows)[:, 1:, None])[..., 0]
            worst = max(worst, (lp - torch.tensor(logprobs)).abs().max().item())
        for got, want in zip(record, case["routing"]):
            wrong += got["experts"].tolist() != want["experts"]
            wrong += got["kept"].int().tolist() != [[int(k) for k in row] for row in want["kept"]]
        if "greedy" in case:
            wrong += greedy(model, rows[0], len(case["greedy"]), case["mode"]) != case["greedy"]
    print(f"golden: {len(runs)} runs, largest difference {worst:.2e}, {wrong} disagreements")
    return worst < 1e-4 and wrong == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare this model with golden numbers.")
    parser.add_argument("--golden", required=True, help="folder with config.json, model.safetensors, golden.json")
    raise SystemExit(0 if check_golden(parser.parse_args().golden) else 1)
