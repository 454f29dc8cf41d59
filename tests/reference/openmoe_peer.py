# SPDX-License-Identifier: Apache-2.0
"""OpenMoE in PyTorch as fast as PyTorch makes it, for the benchmarks of the CUDA backend to be compared with.

bf16, products of q, k and v (and of gate and up) as one, SDPA over a static cache, layers through torch.compile, each
step a CUDA graph that ends with the greedy token. Experts in three ways, of which the fastest at a size counts:
`gather` (each pick's matrices by index), `grouped` (picks sorted by expert, one grouped product) and `all` (every
expert for every row). Weights are random; a bias on the router makes experts as unevenly busy as the demo model's.
Dropless. Needs PyTorch alone; its figures are medians of device time.

    python3 tests/reference/openmoe_peer.py [--model 8b|base|toy] [--gbps N] [--tflops N] [--csv FILE]
    python3 tests/reference/openmoe_peer.py --golden tests/golden/tiny     (safetensors too) compares with its numbers
"""
import argparse
import csv
import json
import math
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

SHAPES = {  # layers, hidden, inner, heads, head_dim, experts, every so manieth layer has them, vocabulary, context
    "toy": (4, 64, 96, 4, 16, 8, 2, 512, 256),
    "base": (12, 768, 2048, 12, 64, 16, 4, 256384, 2048),
    "8b": (24, 2048, 8192, 24, 128, 32, 6, 256384, 2048),
    "34b": (32, 3072, 12288, 24, 128, 32, 4, 256384, 2048),
}
TOPK, EPS, THETA = 2, 1e-6, 10000.0
# shares of the picks that the demo model's experts take, busiest first (as in tests/bench/bench_gpu.c)
DEMO_LOAD = [.1341, .1308, .1284, .1257, .1233, .1217, .1197, .1163]


class Shape:
    def __init__(self, layers, hidden, inner, heads, head_dim, experts, interval, vocab, context):
        self.layers, self.hidden, self.inner, self.heads, self.head_dim = layers, hidden, inner, heads, head_dim
        self.experts, self.interval, self.vocab, self.context = experts, interval, vocab, context

    def moe_layers(self):
        return self.layers // self.interval


# ---- the model --------------------------------------------------------------------------------------------------


def rmsnorm(x, weight):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)).to(weight.dtype) * weight


def activated(h, inner):
    """h: g1, g2 and up side by side."""
    g1, g2, up = h.split(inner, -1)
    return g1 * F.silu(g2) * up


def by_gather(x, experts, weights, w_in, w_out):
    """x [n, hidden]; experts, weights [n, topk]; w_in [E, 3 inner, hidden]; w_out [E, hidden, inner]."""
    # products and sums written out, which a compiler makes one kernel that reads each matrix once, without a copy
    multiply = lambda a, w: (w[experts].float() * a.float()[:, :, None]).sum(-1).to(a.dtype)
    y = multiply(activated(multiply(x[:, None], w_in), w_out.shape[-1]), w_out)
    return (y.float() * weights[..., None]).sum(1)


def by_group(x, experts, weights, w_in, w_out):
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    ends = F.one_hot(flat, w_in.shape[0]).sum(0).cumsum(0).to(torch.int32)
    h = torch._grouped_mm(x[order // TOPK], w_in.transpose(1, 2), offs=ends)
    y = torch._grouped_mm(activated(h, w_out.shape[-1]), w_out.transpose(1, 2), offs=ends)
    back = torch.empty_like(y).index_copy_(0, order, y).view(*experts.shape, -1)
    return (back.float() * weights[..., None]).sum(1)


def by_all(x, experts, weights, w_in, w_out):
    share = torch.zeros(x.shape[0], w_in.shape[0], device=x.device).scatter_(1, experts, weights)
    h = torch.matmul(x, w_in.transpose(1, 2))                                   # [E, n, 3 inner]
    y = torch.bmm(activated(h, w_out.shape[-1]), w_out.transpose(1, 2))         # [E, n, hidden]
    return torch.einsum("enh,ne->nh", y.float(), share)


WAYS = {"gather": by_gather, "grouped": by_group, "all": by_all}


class Layer(nn.Module):
    def __init__(self, s, moe, device, dtype):
        super().__init__()
        empty = lambda *n, t=dtype: nn.Parameter(torch.empty(*n, device=device, dtype=t), requires_grad=False)
        ones = lambda: nn.Parameter(torch.ones(s.hidden, device=device, dtype=dtype), requires_grad=False)
        width = s.heads * s.head_dim
        self.moe, self.heads, self.head_dim, self.inner, self.way = moe, s.heads, s.head_dim, s.inner, "grouped"
        self.norm1, self.norm2 = ones(), ones()
        self.qkv, self.o = empty(3 * width, s.hidden), empty(s.hidden, width)
        self.w_in, self.w_out = empty(3 * s.inner, s.hidden), empty(s.hidden, s.inner)
        if moe:
            self.norm3 = ones()
            self.router, self.bias = empty(s.experts, s.hidden, t=torch.float32), empty(s.experts, t=torch.float32)
            self.experts_in = empty(s.experts, 3 * s.inner, s.hidden)
            self.experts_out = empty(s.experts, s.hidden, s.inner)

    def attention(self, x, cos, sin, keys, values, at, seen):
        """x [b, t, hidden]; keys, values [b, heads, room, head_dim], of which `seen` positions count; at [t]."""
        b, t, _ = x.shape
        q, k, v = F.linear(rmsnorm(x, self.norm1), self.qkv).view(b, t, 3, self.heads, self.head_dim).unbind(2)
        q, k = (rope(y, cos, sin).transpose(1, 2) for y in (q, k))
        v = v.transpose(1, 2)
        keys.index_copy_(2, at, k)
        values.index_copy_(2, at, v)
        if t == 1:
            y = F.scaled_dot_product_attention(q, keys[:, :, :seen], values[:, :, :seen], scale=1.0)
        else:   # a prompt from its beginning
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        return F.linear(y.transpose(1, 2).reshape(b, t, -1), self.o)

    def forward(self, x, cos, sin, keys, values, at, seen):
        x = x + self.attention(x, cos, sin, keys, values, at, seen)
        picked = None
        if self.moe:
            h = rmsnorm(x, self.norm2).flatten(0, 1)
            p = (F.linear(h.float(), self.router) + self.bias).softmax(-1)
            weights, picked = p.topk(TOPK, -1)
            y = WAYS[self.way](h, picked, weights, self.experts_in, self.experts_out)
            x = x + y.to(x.dtype).view_as(x)
        h = rmsnorm(x, self.norm3 if self.moe else self.norm2)
        return x + F.linear(activated(F.linear(h, self.w_in), self.inner), self.w_out), picked


def rope(x, cos, sin):
    """x [b, t, heads, head_dim]: dimension d pairs with d + head_dim / 2; cos, sin [t, 1, head_dim / 2]."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Peer(nn.Module):
    def __init__(self, s, device, dtype):
        super().__init__()
        self.shape = s
        empty = lambda *n: nn.Parameter(torch.empty(*n, device=device, dtype=dtype), requires_grad=False)
        self.embed, self.head = empty(s.vocab, s.hidden), empty(s.vocab, s.hidden)
        self.norm = nn.Parameter(torch.ones(s.hidden, device=device, dtype=dtype), requires_grad=False)
        self.layers = nn.ModuleList(Layer(s, (i + 1) % s.interval == 0, device, dtype) for i in range(s.layers))
        half = s.head_dim // 2
        angle = torch.arange(s.context, device=device)[:, None] * THETA ** -(torch.arange(half, device=device) / half)
        self.cos, self.sin = angle.cos()[:, None], angle.sin()[:, None]

    def dummies(self):
        """Normal numbers of deviation 1 / sqrt(inputs); a whole tensor is never held in float32."""
        for name, w in self.named_parameters():
            if name.endswith("bias"):
                w.zero_()
            elif w.ndim > 1:
                for part in (w if w.ndim == 3 else w.split(1 << 16)):
                    part.normal_(0, part.shape[-1] ** -0.5)
        return self

    def cache(self, batch, room):
        s = self.shape
        return [torch.randn(2, batch, s.heads, room, s.head_dim, device=self.embed.device, dtype=self.embed.dtype)
                for _ in range(s.layers)]

    def forward(self, ids, at, cache, seen, all_rows=False):
        """ids [b, t] at positions `at` [t]: logits of the last row of each (or all), picks of each MoE layer."""
        x, picks = F.embedding(ids, self.embed), []
        cos, sin = self.cos[at], self.sin[at]
        for layer, c in zip(self.layers, cache):
            x, picked = layer(x, cos, sin, c[0], c[1], at, seen)
            if picked is not None:
                picks.append(picked)
        x = x if all_rows else x[:, -1:]
        return F.linear(rmsnorm(x, self.norm), self.head).float(), picks

    def use(self, way):
        for layer in self.layers:
            layer.way = way


# ---- routing as skewed as the demo model's ----------------------------------------------------------------------


def wanted_load(experts):
    """DEMO_LOAD for another number of experts, read between its numbers."""
    n = len(DEMO_LOAD)
    out = []
    for rank in range(experts):
        at = min(max((rank + 0.5) / experts * n - 0.5, 0), n - 1.001)
        i = int(at)
        out.append(DEMO_LOAD[i] + (at - i) * (DEMO_LOAD[i + 1] - DEMO_LOAD[i]))
    return torch.tensor([x / sum(out) for x in out])


def skew(model, ids, at, cache, seen):
    """Sets the routers' biases so that this step's picks spread over the experts as they are wanted to."""
    s = model.shape
    wanted, moes = wanted_load(s.experts), [x for x in model.layers if x.moe]
    for round_ in range(12):
        _, picks = model(ids, at, cache, seen)
        for layer, picked in zip(moes, picks):
            load = torch.bincount(picked.flatten().cpu(), minlength=s.experts).float() + 0.5
            rank = load.argsort(descending=True).argsort()
            change = (wanted[rank] / (load / load.sum())).log() / (1 + round_ / 3)
            layer.bias += 0.7 * change.to(layer.bias.device)


def touched(picks, experts):
    """Experts touched, over the layers; busiest one's share times their number, a mean of the layers."""
    loads = [torch.bincount(p.flatten().cpu(), minlength=experts).float() for p in picks]
    busiest = statistics.fmean((x.max() / x.sum() * experts).item() for x in loads)
    return sum(int((x > 0).sum()) for x in loads), busiest


# ---- measuring --------------------------------------------------------------------------------------------------


def measure(step, device, rounds):
    """Median seconds of step(), recorded as a graph where there is CUDA; and whether it was."""
    if device.type != "cuda":
        step()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return statistics.median(times), "eager"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    run, how = step, "eager"
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run, how = graph.replay, "graph"
    except RuntimeError as e:
        torch.cuda.synchronize()
        print(f"  no graph: {str(e).splitlines()[0]}", file=sys.stderr)
    times = []
    for i in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times), how


class Bench:
    def __init__(self, args):
        self.args, self.end = args, time.monotonic() + args.seconds
        self.device = torch.device(args.device)
        self.shape = Shape(*SHAPES[args.model])
        self.model = Peer(self.shape, self.device, torch.bfloat16).dummies().eval()
        self.file = open(args.csv, "w", encoding="utf-8", newline="") if args.csv else None
        self.write("system what batch length ms tokens_per_s floor_ms share experts busiest".split())
        if not args.no_compile:
            torch._dynamo.config.cache_size_limit = 64
            for layer in self.model.layers:
                layer.compile(dynamic=True)
        print(f"{'what':8}{'batch':>6}{'length':>8}{'ms':>12}{'tokens/s':>12}{'floor ms':>12}{'share':>8}{'experts':>9}"
              f"{'busiest':>9}  how")

    def fastest(self, ids, at, cache, seen, ways):
        """Seconds, how, and picks of the best way of running a step."""
        best, out = None, {}

        def step():
            logits, picks = self.model(ids, at, cache, seen)
            out["token"], out["picks"] = logits.argmax(-1), picks

        for way in ways:
            self.model.use(way)
            for stance in ([] if self.args.no_compile else ["default"]) + ["force_eager"]:
                try:
                    with torch.compiler.set_stance(stance):
                        seconds, how = measure(step, self.device, self.args.rounds)
                except (RuntimeError, NotImplementedError, AssertionError, TypeError) as e:
                    torch_says = str(e).strip().splitlines() or [type(e).__name__]
                    print(f"  {way}, {stance}: {torch_says[0][:150]}", file=sys.stderr)
                    continue
                if best is None or seconds < best[0]:
                    how = f"{way}, {'compiled' if stance == 'default' else 'not compiled'}, {how}"
                    best = (seconds, how, [p.clone() for p in out["picks"]])
                break
        return best

    def late(self, what, batch, length):
        if time.monotonic() < self.end:
            return False
        print(f"{what:8}{batch:6}{length:8}  NOT RUN: the time is up")
        return True

    def report(self, what, batch, length, found, work, ceiling):
        if found is None:
            print(f"{what:8}{batch:6}{length:8}  NOT RUN: no way of running it worked")
            return
        seconds, how, picks = found
        experts, busiest = touched(picks, self.shape.experts)
        floor = work(experts) / ceiling if ceiling else 0
        tokens = batch * (length if what == "prefill" else 1) / seconds
        print(f"{what:8}{batch:6}{length:8}{seconds * 1e3:12.3f}{tokens:12.0f}{floor * 1e3:12.3f}{floor / seconds:8.2f}"
              f"{experts:9}{busiest:9.2f}  {how}", flush=True)
        self.write(["pytorch", what, batch, length, f"{seconds * 1e3:.4f}", f"{tokens:.1f}", f"{floor * 1e3:.4f}",
                    f"{floor / seconds:.4f}", experts, f"{busiest:.3f}"])

    def write(self, row):
        """A row of the CSV, at once: a run that is cut short leaves what it has."""
        if self.file:
            csv.writer(self.file).writerow(row)
            self.file.flush()

    def one_expert(self):
        return 4 * self.shape.hidden * self.shape.inner

    def dense(self):
        s = self.shape
        return s.layers * (4 * s.hidden * s.heads * s.head_dim + self.one_expert())

    def ids(self, batch, n):
        return torch.randint(0, self.shape.vocab, (batch, n), device=self.device)

    def decode(self, context):
        s = self.shape
        at = torch.tensor([context - 1], device=self.device)
        for batch in self.args.batches:
            if self.late("decode", batch, context):
                continue
            ways = (["gather"] if batch <= 8 else []) + (["grouped"] if batch > 1 else [])
            ways += ["all"] if 8 < batch <= 64 else []
            kv = 2 * s.layers * s.heads * s.head_dim * context * batch
            work = lambda experts: 2 * (self.dense() + experts * self.one_expert() + s.hidden * s.vocab + kv)
            try:
                found = self.fastest(self.ids(batch, 1), at, self.model.cache(batch, context), context, ways)
            except torch.cuda.OutOfMemoryError:
                found = None
            self.report("decode", batch, context, found, work, self.args.gbps * 1e9)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def prefill(self, tokens):
        s = self.shape
        length = min(tokens, self.args.longest)
        batch = tokens // length
        if self.late("prefill", batch, length):
            return
        work = lambda _: 2 * ((self.dense() + s.moe_layers() * TOPK * self.one_expert()) * batch * length
                              + s.layers * s.heads * s.head_dim * length * length * batch + s.hidden * s.vocab * batch)
        at = torch.arange(length, device=self.device)
        found = self.fastest(self.ids(batch, length), at, self.model.cache(batch, length), length, ["grouped"])
        self.report("prefill", batch, length, found, work, self.args.tflops * 1e12)

    def run(self):
        batch, context = max(self.args.batches), min(self.args.contexts)
        at = torch.tensor([context - 1], device=self.device)
        self.model.use("grouped")
        skew(self.model, self.ids(batch, 1), at, self.model.cache(batch, context), context)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        for context in self.args.contexts:
            self.decode(context)
        for tokens in self.args.prompts:
            self.prefill(tokens)


# ---- golden numbers ---------------------------------------------------------------------------------------------


def from_checkpoint(folder, device, dtype):
    from safetensors.torch import load_file
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    model = Peer(Shape(c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"], c["num_attention_heads"],
                       c["head_dim"], c["num_experts"], c["moe_layer_interval"], c["vocab_size"],
                       c["max_position_embeddings"]), device, dtype)
    t = {k.removeprefix("model."): v.float() for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}
    put = lambda w, *parts: w.copy_(torch.cat(parts))
    put(model.embed, t["embed_tokens.weight"])
    put(model.head, t["lm_head.weight"])
    put(model.norm, t["norm.weight"])
    for i, layer in enumerate(model.layers):
        get = lambda name: t[f"layers.{i}.{name}"]
        put(layer.norm1, get("input_layernorm.weight"))
        put(layer.norm2, get("post_attention_layernorm.weight"))
        put(layer.qkv, *(get(f"self_attn.{x}_proj.weight") for x in "qkv"))
        put(layer.o, get("self_attn.o_proj.weight"))
        mlp = "extra_mlp" if layer.moe else "mlp"
        put(layer.w_in, get(f"{mlp}.gate_proj.weight"), get(f"{mlp}.up_proj.weight"))
        put(layer.w_out, get(f"{mlp}.down_proj.weight"))
        if layer.moe:
            put(layer.norm3, get("pre_extra_mlp_layernorm.weight"))
            put(layer.router, get("mlp.gate_weight"))
            layer.bias.zero_()
            layer.experts_in.copy_(torch.cat((get("mlp.experts.wi_gate"), get("mlp.experts.wi_up")), 2).transpose(1, 2))
            layer.experts_out.copy_(get("mlp.experts.wo").transpose(1, 2))
    return model.eval()


def last_logits(model, ids, device):
    """By a prompt of all but the last token, where there are two, and a decode of that one."""
    cache, n = model.cache(1, len(ids)), len(ids) - 1
    row = torch.tensor([ids], device=device)
    if n > 1:
        model(row[:, :n], torch.arange(n, device=device), cache, n)
    elif n == 1:
        model(row[:, :1], torch.tensor([0], device=device), cache, 1)
    return model(row[:, n:], torch.tensor([n], device=device), cache, n + 1)[0][0, -1]


def check_golden(folder, device):
    """Last logits and log-probabilities of every dropless case, in each way and type; greedy tokens in float32."""
    with open(os.path.join(folder, "golden.json"), encoding="utf-8") as f:
        cases = [c for c in json.load(f)["cases"] if c["mode"] == "dropless"]
    worst_allowed, failed = {torch.float32: 1e-4, torch.bfloat16: 0.25}, 0
    for dtype, allowed in worst_allowed.items():
        model = from_checkpoint(folder, device, dtype)
        for way in WAYS:
            if way == "grouped" and dtype == torch.float32:
                continue        # PyTorch's grouped product takes bf16 alone
            model.use(way)
            worst, greedy_wrong = 0.0, 0
            for c in cases:
                ids, n = c["input_ids"], len(c["input_ids"])
                row, at = torch.tensor([ids], device=device), torch.arange(n, device=device)
                logits = model(row, at, model.cache(1, n), n, all_rows=True)[0][0] if n > 1 else None
                wanted = torch.tensor(c["last_logits"], device=device)
                found = [last_logits(model, ids, device)] + ([logits[-1]] if n > 1 else [])
                worst = max([worst] + [(x - wanted).abs().max().item() for x in found])
                if n > 1 and c.get("logprob_of_inputs"):
                    lp = logits.log_softmax(-1)[:-1].gather(1, row[0, 1:, None])[:, 0]
                    worst = max(worst, (lp - torch.tensor(c["logprob_of_inputs"], device=device)).abs().max().item())
                if dtype == torch.float32 and "greedy" in c:
                    said = list(ids)
                    for _ in c["greedy"]:
                        said.append(int(last_logits(model, said, device).argmax()))
                    greedy_wrong += said[n:] != c["greedy"]
            good = worst <= allowed and not greedy_wrong and not math.isnan(worst)
            failed += not good
            print(f"golden, {str(dtype)[6:]}, {way}: {len(cases)} cases, largest difference {worst:.2e} (at most "
                  f"{allowed}), {greedy_wrong} greedy answers differ: {'passed' if good else 'FAILED'}")
    return failed


def numbers(text):
    return [int(x) for x in text.split(",")]


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--golden", help="folder with config.json, model.safetensors and golden.json")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--contexts", type=numbers, default=[512, 1500])
    parser.add_argument("--prompts", type=numbers, default=[128, 512, 2048, 8192])
    parser.add_argument("--longest", type=int, default=2048, help="longer prompts are several of this length")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--gbps", type=float, default=0, help="measured bandwidth, for the floor of decodes")
    parser.add_argument("--tflops", type=float, default=0, help="measured rate of products, for that of prompts")
    parser.add_argument("--seconds", type=float, default=1e9, help="nothing new is begun after so many")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--csv")
    args = parser.parse_args()
    torch.manual_seed(1)
    if args.golden:
        return check_golden(args.golden, torch.device(args.device))
    Bench(args).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
