# SPDX-License-Identifier: Apache-2.0
"""Trains the demo model of deploy/demo-model/ from nothing: vocabulary, language-model phase, chat tuning.

The published recipe in miniature: top-2 routing with a training capacity factor of 1.25, a load-balance loss of
0.01, a router z loss of 1e-4; first a language-model phase on plain texts and whole dialogues, then chat
tuning with the loss on the assistant's words. The learning rate warms up, stays, and falls to zero at the
end. Every batch follows from the seed, also after resuming from the checkpoint in --work.

    python3 tests/reference/train_demo.py            (CUDA where there is one, else the CPU: about 1.5 hours)
"""
import argparse
import json
import os
import random
import shutil
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import chat_tokens
import dialogues
from demo_init import init_weights
from muon import Muon
from openmoe_torch import OpenMoE

CONFIG = {
    "architectures": ["OpenMoeForCausalLM"], "model_type": "llama", "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0, "head_dim": 32, "hidden_act": "swiglu", "hidden_size": 192, "initializer_range": 0.02,
    "intermediate_size": 256, "layer_norm_epsilon": 1e-06, "max_position_embeddings": 1024, "mlp_gated": True,
    "moe_layer_interval": 2, "num_attention_heads": 6, "num_experts": 8, "num_hidden_layers": 6,
    "num_key_value_heads": 6, "pretraining_tp": 1, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 10000.0, "router_capacity_factor_eval": 2.0, "router_capacity_factor_train": 1.25,
    "router_drop_tks": True, "router_min_capacity": 4, "router_noisy_policy": None, "router_topk": 2,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": chat_tokens.ROWS}
BALANCE, ROUTER_Z = 0.01, 1e-4
POOL = 512          # rows generated at once, sorted by length and cut into batches
# In the copying stage what is already known by heart (greetings, facts, refusals) comes up less often.
COPYING = {"tell": 24, "recall": 26, "arithmetic": 12, "spell": 11, "reverse": 10, "count": 14, "greeting": 2,
           "small talk": 1, "openmoe": 1, "cannot": 3}
# The course of training: (last pool, plain texts, share of the default system message, longest dialogue, weights,
# tokens of a batch).
# First the language-model phase; then chat tuning, mostly with short system messages while copying and
# recall form, because the long one costs a third of all tokens and teaches little; last the full mixture.
STAGES = ((6, True, 0.3, 10, None, 4096), (50, False, 0.15, 10, COPYING, 4096), (None, False, 0.65, 30, None, 4096))


class Batches:
    """Batches in an order fixed by the seed; `at` = (pool, batch in it) is all there is to resume from."""

    def __init__(self, sp, seed):
        self.sp, self.seed = sp, seed
        self.pool, self.index, self.ready = 0, 0, None

    def _row(self, stream, plain, rng):
        room = CONFIG["max_position_embeddings"]
        if plain is not None and rng.random() < 0.5:
            ids = ([chat_tokens.PAD] + self.sp.encode(next(plain)) + [chat_tokens.EOS])[:room]
            return ids, [1.0] * len(ids)
        ids, spans = chat_tokens.dialogue_ids(self.sp, next(stream), room)
        weights = [1.0 if plain is not None else 0.0] * len(ids)
        for start, end in spans:
            weights[start:end] = [1.0] * (end - start)
        return ids, weights

    def _make(self):
        seed = self.seed * 1000003 + self.pool
        rng = random.Random(f"order-{seed}")
        _, texts, default_share, longest, mixture, tokens = next(s for s in STAGES if s[0] is None or self.pool < s[0])
        plain = dialogues.plain_documents(seed) if texts else None
        stream = dialogues.training(seed, longest, default_share, mixture)
        rows = sorted((self._row(stream, plain, rng) for _ in range(POOL)), key=lambda r: len(r[0]))
        batches, start = [], 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and len(rows[end][0]) * (end + 1 - start) <= tokens:
                end += 1
            batches.append(rows[start:end])
            start = end
        rng.shuffle(batches)
        return batches

    def next(self):
        """ids [b, t], loss weight of every next token [b, t - 1], flat indices of the real tokens."""
        if self.ready is None:
            self.ready = self._make()
        rows = self.ready[self.index]
        self.index += 1
        if self.index == len(self.ready):
            self.pool, self.index, self.ready = self.pool + 1, 0, None
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([r[0] + [0] * (longest - len(r[0])) for r in rows])
        weights = torch.tensor([r[1] + [0.0] * (longest - len(r[1])) for r in rows])
        real = torch.tensor([[True] * len(r[0]) + [False] * (longest - len(r[0])) for r in rows])
        return ids, weights[:, 1:].contiguous(), real.view(-1).nonzero()[:, 0]


def losses(model, ids, weights, valid):
    states, aux = model(ids, "train", valid=valid, head=False)
    picked = (weights.view(-1) > 0).nonzero()[:, 0]
    states = states[:, :-1].reshape(-1, states.shape[-1]).index_select(0, picked)
    target, weight = ids[:, 1:].reshape(-1)[picked], weights.view(-1)[picked]
    each = F.cross_entropy(model.lm_head(states).float(), target, reduction="none")
    balance = sum(a[0] for a in aux) / len(aux)
    z = sum(a[1] for a in aux) / len(aux)
    return (each * weight).sum() / weight.sum(), balance, z


def factor_at(step, args):
    """Warm-up, plateau, straight line to zero."""
    if step < args.warmup:
        return (step + 1) / args.warmup
    left = args.steps - step
    return max(0.0, min(1.0, left / args.decay_steps))


@torch.no_grad()
def probe(model, sp, device, count=96):
    """Held-out replies that are right token by token when the history is given: a quick look, by skill."""
    right, total = {}, {}
    rows = [(d, *chat_tokens.dialogue_ids(sp, d, 1024)) for d in dialogues.held_out(7, count)]
    rows.sort(key=lambda r: len(r[1]))
    for start in range(0, count, 16):
        part = rows[start:start + 16]
        longest = max(len(r[1]) for r in part)
        ids = torch.tensor([r[1] + [0] * (longest - len(r[1])) for r in part], device=device)
        best = model(ids)[0].argmax(-1).cpu()
        for (dialogue, row, spans), guess in zip(part, best):
            for turn, (a, b) in zip(dialogue[2::2], spans):
                hit = guess[a - 1:b - 1].tolist() == row[a:b]
                total[turn["skill"]] = total.get(turn["skill"], 0) + 1
                right[turn["skill"]] = right.get(turn["skill"], 0) + hit
    share = {k: right[k] / total[k] for k in dialogues.SKILL_NAMES if k in total}
    share["all"] = sum(right.values()) / sum(total.values())
    return share


def export(weights, folder, tokenizer):
    """Writes the model folder; each file is replaced in one go, so a reader never sees half of one."""
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, ".new")
    save_file({k: v.to("cpu", torch.bfloat16).contiguous() for k, v in weights.items()}, temporary,
              metadata={"format": "pt"})
    os.chmod(temporary, 0o644)
    os.replace(temporary, os.path.join(folder, "model.safetensors"))
    target = os.path.join(folder, "spiece.model")
    if not os.path.exists(target) or open(target, "rb").read() != open(tokenizer, "rb").read():
        shutil.copyfile(tokenizer, temporary)
        os.replace(temporary, target)
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump(CONFIG, f, indent=2)
        f.write("\n")
    os.replace(temporary, os.path.join(folder, "config.json"))
    chat_tokens.write_tokenizer_files(folder)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="deploy/demo-model", help="folder of the finished model")
    parser.add_argument("--work", default="build/demo-train", help="folder of checkpoint and log")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--decay-steps", type=int, default=1400, help="the last steps, over which the rate falls")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--lr", type=float, default=0.015, help="of Muon")
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--average", type=float, default=0.99, help="decay of the weight average that is written out")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints and probes")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main():
    args = parse()
    os.makedirs(args.work, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = os.path.join(args.work, "spiece.model")
    if not os.path.exists(tokenizer):
        chat_tokens.train_tokenizer(tokenizer, args.seed)
    sp = chat_tokens.load_tokenizer(tokenizer)
    model = OpenMoE(CONFIG)
    init_weights(model, args.seed)
    model.to(device)
    optimiser = Muon(model, args.lr, args.adam_lr, args.weight_decay, CONFIG["head_dim"])
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    batches = Batches(sp, args.seed)
    step, seconds, tokens = 0, 0.0, 0
    checkpoint = os.path.join(args.work, "checkpoint.pt")
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load(saved["optimiser"])
        average = saved["average"]
        step, seconds, tokens, batches.pool, batches.index = saved["at"]
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {device}, from step {step}", flush=True)
    begun, shown = time.time(), []
    while step < args.steps:
        ids, weights, valid = (x.to(device) for x in batches.next())
        loss, balance, z = losses(model, ids, weights, valid)
        (loss + BALANCE * balance + ROUTER_Z * z).backward()
        optimiser.step(factor_at(step, args))
        step, tokens = step + 1, tokens + valid.numel()
        # a longer memory as training goes on, none at its start
        keep = min(args.average, 1 - 10 / (step + 10))
        torch._foreach_lerp_(list(average.values()), [v for v in model.state_dict().values()], 1 - keep)
        shown.append((loss.item(), balance.item(), z.item()))
        if step % 20 == 0:
            now = seconds + time.time() - begun
            mean = [sum(x) / len(shown) for x in zip(*shown)]
            print(f"step {step} pool {batches.pool} loss {mean[0]:.4f} balance {mean[1]:.3f} z {mean[2]:.2f} "
                  f"tokens {tokens / 1e6:.2f}M seconds {now:.0f}", flush=True)
            shown = []
        if step % args.save_every == 0 or step == args.steps:
            at = [step, seconds + time.time() - begun, tokens, batches.pool, batches.index]
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state(), "average": average, "at": at},
                       checkpoint + ".new")
            os.replace(checkpoint + ".new", checkpoint)
            export(average, args.out, tokenizer)
            live = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average)
            share = probe(model, sp, device)
            model.load_state_dict(live)
            print("held out, history given: " + ", ".join(f"{k} {v:.2f}" for k, v in share.items()), flush=True)


if __name__ == "__main__":
    main()
