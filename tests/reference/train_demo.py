# SPDX-License-Identifier: Apache-2.0
"""Trains the demo model of deploy/demo-model/ from nothing: vocabulary, language-model phase, chat tuning.

The published recipe in miniature: top-2 routing with a training capacity factor of 1.25, a load-balance loss of
0.01, a router z loss of 1e-4; first a language-model phase on plain texts and whole dialogues, then chat
tuning with the loss on the assistant's words. The learning rate warms up, stays, and falls to zero; then
once more, while tool calls are learned. Every batch follows from the seed, also after resuming from the checkpoint
in --work.

    python3 tests/reference/train_demo.py            (CUDA where there is one, else two CPU cores: about two hours)
"""
import argparse
import json
import os
import random
import shutil
import time

import torch
import torch.distributed as dist
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
# In the copying stage what is learned by heart (greetings, facts, refusals) comes up less often.
COPYING = {"tell": 24, "recall": 26, "arithmetic": 12, "spell": 11, "reverse": 10, "count": 14, "greeting": 2,
           "small talk": 1, "openmoe": 1, "cannot": 3}
PRACTICE = {"tell": 14, "recall": 20, "arithmetic": 22, "spell": 9, "reverse": 12, "count": 16, "greeting": 6,
            "small talk": 6, "openmoe": 5, "cannot": 5}
FULL = {"tell": 18, "recall": 26, "arithmetic": 18, "spell": 8, "reverse": 8, "count": 14, "greeting": 6,
        "small talk": 6, "openmoe": 6, "cannot": 8}
# What is hardest last: facts that were never told, long dialogues, counting down.
FINAL = {"tell": 20, "recall": 40, "arithmetic": 12, "spell": 5, "reverse": 6, "count": 22, "greeting": 5,
         "small talk": 4, "openmoe": 4, "cannot": 5}
# The course of training: (last pool, plain texts, share of the default system message, longest dialogue, weights,
# share of dialogues with tools). First the language-model phase; then chat tuning, mostly with short system messages
# while copying and recall form, because the long one costs a third of all tokens and teaches little; then the
# full mixture; last tool calls beside it.
STAGES = ((6, True, 0.3, 10, None, 0.0), (34, False, 0.15, 10, COPYING, 0.0), (60, False, 0.25, 10, PRACTICE, 0.0),
          (76, False, 0.55, 30, FULL, 0.0), (97, False, 0.5, 30, FINAL, 0.0), (None, False, 0.5, 30, FINAL, 0.45))
BATCH_TOKENS = 4096
# (last step, warm-up, steps of the decay to zero, peak): everything but tools, then tools, each with a rate of its own.
SCHEDULE = ((2400, 60, 1100, 1.0), (3370, 40, 600, 0.6))


class Batches:
    """Batches in an order fixed by the seed; `at` = (pool, batch in it) is all there is to resume from."""

    def __init__(self, sp, seed, shares):
        self.sp, self.seed, self.shares = sp, seed, shares
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
        _, texts, default_share, longest, mixture, tool_share = next(
            s for s in STAGES if s[0] is None or self.pool < s[0])
        plain = dialogues.plain_documents(seed) if texts else None
        stream = dialogues.training(seed, longest, default_share, mixture, tool_share)
        rows = sorted((self._row(stream, plain, rng) for _ in range(POOL)), key=lambda r: len(r[0]))
        batches, start = [], 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and len(rows[end][0]) * (end + 1 - start) <= BATCH_TOKENS // self.shares:
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


def factor_at(step):
    """Warm-up, plateau, straight line to zero, once for each line of the schedule."""
    first = 0
    for last, warmup, decay, peak in SCHEDULE:
        if step < last:
            return peak * min((step - first + 1) / warmup, 1.0, (last - step) / decay)
        first = last
    return 0.0


@torch.no_grad()
def probe(model, sp, device, count=96):
    """Held-out replies that are right token by token when the history is given: a quick look, by skill."""
    right, total = {}, {}
    batch = dialogues.held_out(7, count) + dialogues.held_out(7, count, tool_share=1.0)
    rows = [(dialogues.rendered(d), *chat_tokens.dialogue_ids(sp, d, 1024)) for d in batch]
    rows.sort(key=lambda r: len(r[1]))
    for start in range(0, len(rows), 16):
        part = rows[start:start + 16]
        longest = max(len(r[1]) for r in part)
        ids = torch.tensor([r[1] + [0] * (longest - len(r[1])) for r in part], device=device)
        best = model(ids)[0].argmax(-1).cpu()
        for (dialogue, row, spans), guess in zip(part, best):
            for turn, (a, b) in zip(dialogue[2::2], spans):
                hit = guess[a - 1:b - 1].tolist() == row[a:b]
                total[turn["skill"]] = total.get(turn["skill"], 0) + 1
                right[turn["skill"]] = right.get(turn["skill"], 0) + hit
    share = {k: right[k] / total[k] for k in dialogues.SKILL_NAMES + dialogues.TOOL_SKILLS if k in total}
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
    parser.add_argument("--steps", type=int, default=SCHEDULE[-1][0], help="where to stop")
    parser.add_argument("--lr", type=float, default=0.015, help="of Muon")
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--average", type=float, default=0.99, help="decay of the weight average that is written out")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints and probes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2,
                        help="on a CPU, so many share each step: they wait for each other less often than threads")
    return parser.parse_args()


def average_gradients(model, world):
    """The same mean gradient for every process."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.view(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for grad, part in zip(grads, flat.split([g.numel() for g in grads])):
        grad.copy_(part.view_as(grad))


class Trainer:
    """Model, optimiser, weight average and place in the data; one of these per process."""

    def __init__(self, args, rank, device):
        self.args, self.rank, self.device = args, rank, device
        self.tokenizer = os.path.join(args.work, "spiece.model")
        self.checkpoint = os.path.join(args.work, "checkpoint.pt")
        self.sp = chat_tokens.load_tokenizer(self.tokenizer)
        self.model = OpenMoE(CONFIG)
        init_weights(self.model, args.seed)
        self.model.to(device)
        self.optimiser = Muon(self.model, args.lr, args.adam_lr, args.weight_decay, CONFIG["head_dim"])
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.batches = Batches(self.sp, args.seed, args.processes)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        if os.path.exists(self.checkpoint):
            saved = torch.load(self.checkpoint, map_location=device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimiser.load(saved["optimiser"])
            self.average = saved["average"]
            self.step, self.seconds, self.tokens, self.batches.pool, self.batches.index = saved["at"]

    def one_step(self):
        """Every process takes its own batch of the same sequence; returns the losses to show."""
        own = [self.batches.next() for _ in range(self.args.processes)][self.rank]
        ids, weights, valid = (x.to(self.device) for x in own)
        loss, balance, z = losses(self.model, ids, weights, valid)
        (loss + BALANCE * balance + ROUTER_Z * z).backward()
        if self.args.processes > 1:
            average_gradients(self.model, self.args.processes)
        self.optimiser.step(factor_at(self.step))
        self.step, self.tokens = self.step + 1, self.tokens + valid.numel() * self.args.processes
        # a longer memory as training goes on, none at its start
        keep = min(self.args.average, 1 - 10 / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.model.state_dict().values()), 1 - keep)
        return loss.item(), balance.item(), z.item()

    def save(self):
        at = [self.step, self.seconds, self.tokens, self.batches.pool, self.batches.index]
        torch.save({"model": self.model.state_dict(), "optimiser": self.optimiser.state(), "average": self.average,
                    "at": at}, self.checkpoint + ".new")
        os.replace(self.checkpoint + ".new", self.checkpoint)
        export(self.average, self.args.out, self.tokenizer)

    def probe(self):
        """The probe of the averaged weights, which are what is written out."""
        live = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        share = probe(self.model, self.sp, self.device)
        self.model.load_state_dict(live)
        print("held out, history given: " + ", ".join(f"{k} {v:.2f}" for k, v in share.items()), flush=True)


def train(rank, args, device):
    torch.set_num_threads(max(1, args.threads // args.processes))
    torch.manual_seed(args.seed)
    if args.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{os.path.abspath(args.work)}/meeting", rank=rank,
                                world_size=args.processes)
    t = Trainer(args, rank, device)
    if rank == 0:
        print(f"{sum(p.numel() for p in t.model.parameters())} parameters, {device}, from step {t.step}", flush=True)
    begun, shown = time.time() - t.seconds, []
    while t.step < args.steps:
        shown.append(t.one_step())
        t.seconds = time.time() - begun
        if rank == 0 and t.step % 20 == 0:
            mean = [sum(x) / len(shown) for x in zip(*shown)]
            print(f"step {t.step} pool {t.batches.pool} loss {mean[0]:.4f} balance {mean[1]:.3f} z {mean[2]:.2f} "
                  f"tokens {t.tokens / 1e6:.2f}M seconds {t.seconds:.0f}", flush=True)
            shown = []
        if rank == 0 and (t.step % args.save_every == 0 or t.step == args.steps):
            t.save()
            t.probe()


def main():
    args = parse()
    os.makedirs(args.work, exist_ok=True)
    tokenizer, meeting = (os.path.join(args.work, name) for name in ("spiece.model", "meeting"))
    if not os.path.exists(tokenizer):
        chat_tokens.train_tokenizer(tokenizer, args.seed)
    if os.path.exists(meeting):
        os.remove(meeting)
    if torch.cuda.is_available():
        args.processes = 1
        train(0, args, "cuda")
    elif args.processes == 1:
        train(0, args, "cpu")
    else:
        torch.multiprocessing.spawn(train, (args, "cpu"), args.processes)


if __name__ == "__main__":
    main()
