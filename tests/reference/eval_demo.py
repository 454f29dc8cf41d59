# SPDX-License-Identifier: Apache-2.0
"""Held-out accuracy and routing of the demo model, from its BF16 weights, computed in float32.

Each held-out dialogue is played as a chat would be: greedy replies, and the model's own replies, not the expected
ones, are the history of the next turn. A reply counts when it is right word for word, a tool call when name and
arguments are; after a wrong call the dialogue ends and the answer to its result counts as wrong too. Dropless, the
cache of a chat is kept; in reference mode each turn's whole prompt is one forward call, so that the capacity rule
applies to it, and decoding one token never drops.

    python3 tests/reference/eval_demo.py --model deploy/demo-model [--n 400] [--json FILE] [--show-wrong 20]
"""
import argparse
import json
import os

import torch

import chat_tokens
import dialogues
from openmoe_torch import load

BUCKET = 128        # positions per row of the drop table


@torch.no_grad()
def reply_to(model, pieces, ids, mode, cache, fed, longest=220):
    """Greedy reply to the prompt `ids`; `fed` are the tokens whose keys and values `cache` holds already."""
    past = 0
    if mode == "dropless":
        limit = min(len(fed), len(ids) - 1)
        while past < limit and fed[past] == ids[past]:
            past += 1
    step, out, fed = ids[past:], [], list(ids)
    while len(out) < longest and len(fed) < cache[0].shape[3]:
        logits, _ = model(torch.tensor([step]), mode, cache=cache, past=past)
        past += len(step)
        token = int(logits[0, -1, :pieces].argmax())
        if token == chat_tokens.EOS:
            break
        out.append(token)
        fed.append(token)
        step = [token]
    return out, fed[:past]


def play(model, sp, dialogue, mode):
    """Yields (turn index from 1, expected turn, reply) while the context has room."""
    room = model.cfg["max_position_embeddings"]
    dialogue = dialogues.rendered(dialogue)
    cache, fed = model.new_cache(1, room), []
    ids = chat_tokens.system_ids(sp, dialogue[0]["content"])
    for index, (user, expected) in enumerate(zip(dialogue[1::2], dialogue[2::2]), 1):
        prompt = ids + chat_tokens.prompt_ids(sp, user["content"])
        wanted = len(chat_tokens.finished_ids(sp, user["content"], expected["content"]))
        if len(ids) + wanted > room:
            return
        out, fed = reply_to(model, sp.get_piece_size(), prompt, mode, cache, fed)
        reply = sp.decode(out)
        yield index, expected, reply
        if expected.get("tool_calls") and not dialogues.check(expected, reply):
            yield index + 1, dialogue[2 * index + 2], ""
            return
        ids = ids + chat_tokens.finished_ids(sp, user["content"], reply)


class Tally:
    """Right and total by any key."""

    def __init__(self):
        self.counts = {}

    def add(self, key, right):
        one = self.counts.setdefault(key, [0, 0])
        one[0] += bool(right)
        one[1] += 1

    def table(self, order):
        return {str(k): {"right": self.counts[k][0], "of": self.counts[k][1],
                         "share": round(self.counts[k][0] / self.counts[k][1], 4)} for k in order if k in self.counts}


def accuracy(model, sp, batch, mode, show):
    skill, turn, system, total = Tally(), Tally(), Tally(), Tally()
    for dialogue in batch:
        full = dialogue[0]["content"] == dialogues.DEFAULT_SYSTEM
        for index, expected, reply in play(model, sp, dialogue, mode):
            right = dialogues.check(expected, reply)
            skill.add(expected["skill"], right)
            turn.add(str(index) if index <= 6 else "7-12" if index <= 12 else "13+", right)
            system.add("default" if full else "other", right)
            total.add("all", right)
            if not right and show > 0:
                show -= 1
                asked = dialogues.rendered(dialogue)[2 * index - 1]["content"]
                print(f"  wrong: {expected['skill']}, turn {index}: {asked!r}\n"
                      f"    want {expected['content']!r}\n    got  {reply!r}")
    return {"skill": skill.table(dialogues.SKILL_NAMES + dialogues.TOOL_SKILLS),
            "turn": turn.table(("1", "2", "3", "4", "5", "6", "7-12", "13+")),
            "system message": system.table(("default", "other")), "total": total.table(("all",))}


@torch.no_grad()
def routing(model, sp, batch):
    """Load per expert and layer, drops by position in reference mode, one call per whole dialogue; and how
    often a token's first expert is the one that its id picks most often (context-independent routing)."""
    cfg = model.cfg
    layers = [i for i, layer in enumerate(model.model.layers) if layer.is_moe]
    load_of = torch.zeros(len(layers), cfg["num_experts"])
    buckets = cfg["max_position_embeddings"] // BUCKET
    dropped, picks = torch.zeros(len(layers), buckets), torch.zeros(buckets)
    by_id = torch.zeros(len(layers), cfg["vocab_size"], cfg["num_experts"])
    weight = torch.zeros(len(layers), cfg["router_topk"])
    tokens = 0
    for dialogue in batch:
        ids, _ = chat_tokens.dialogue_ids(sp, dialogue, cfg["max_position_embeddings"])
        record = []
        model(torch.tensor([ids]), "reference", record=record, head=False)
        row, where = torch.tensor(ids), torch.arange(len(ids)) // BUCKET
        tokens += len(ids)
        picks += torch.bincount(where, minlength=buckets) * cfg["router_topk"]
        for i, one in enumerate(record):
            load_of[i] += torch.bincount(one["experts"].reshape(-1), minlength=cfg["num_experts"])
            dropped[i] += torch.bincount(where, (~one["kept"]).sum(1).float(), minlength=buckets)
            by_id[i].index_put_((row, one["experts"][:, 0]), torch.ones(len(ids)), accumulate=True)
            weight[i] += one["weights"].sum(0)
    busy = by_id.sum(2) >= 10
    names = [f"layer {i}" for i in layers]
    return {
        "tokens": tokens,
        "load": {n: [round(x, 4) for x in (v / v.sum()).tolist()] for n, v in zip(names, load_of)},
        "mean weight of first and second": {n: [round(x, 3) for x in (v / tokens).tolist()]
                                            for n, v in zip(names, weight)},
        "first expert is its token's usual one": {
            n: round((by_id[i].max(1).values[busy[i]].sum() / by_id[i][busy[i]].sum()).item(), 4)
            for i, n in enumerate(names)},
        "dropped share by position": {
            f"{b * BUCKET}-{(b + 1) * BUCKET - 1}": {n: round((dropped[i, b] / picks[b]).item(), 5)
                                                     for i, n in enumerate(names)}
            for b in range(buckets) if picks[b] > 0}}


def print_accuracy(title, result):
    print(f"\n{title}")
    for group, table in result.items():
        for key, one in table.items():
            print(f"  {group:14} {key:12} {one['right']:5} of {one['of']:5}  {100 * one['share']:6.2f}%")


def print_routing(result):
    print(f"\nRouting over {result['tokens']} tokens, each dialogue one forward call in reference mode")
    for name, shares in result["load"].items():
        print(f"  load {name}: " + " ".join(f"{100 * s:5.1f}%" for s in shares))
    for title in ("mean weight of first and second", "first expert is its token's usual one"):
        print(f"  {title}: {result[title]}")
    for where, row in result["dropped share by position"].items():
        print(f"  dropped at {where:9}: " + "  ".join(f"{n} {100 * s:.3f}%" for n, s in row.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deploy/demo-model")
    parser.add_argument("--n", type=int, default=400, help="held-out dialogues, dropless (default 400)")
    parser.add_argument("--reference-n", type=int, default=100, help="of them in reference mode (default 100)")
    parser.add_argument("--tools-n", type=int, default=200, help="dialogues with tools beside them (default 200)")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--show-wrong", type=int, default=0, help="print so many wrong replies")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.model)
    sp = chat_tokens.load_tokenizer(os.path.join(args.model, "spiece.model"))
    batch = dialogues.held_out(args.seed, args.n)
    out = {"seed": args.seed, "dialogues": args.n}
    if args.n:
        out["dropless"] = accuracy(model, sp, batch, "dropless", args.show_wrong)
        print_accuracy(f"Held-out accuracy, dropless, {args.n} dialogues", out["dropless"])
    if args.n and args.reference_n:
        out["reference"] = accuracy(model, sp, batch[:args.reference_n], "reference", 0)
        print_accuracy(f"Held-out accuracy, reference mode, {args.reference_n} dialogues", out["reference"])
    if args.tools_n:
        with_tools = dialogues.held_out(args.seed, args.tools_n, tool_share=1.0)
        out["tools"] = accuracy(model, sp, with_tools, "dropless", args.show_wrong)
        print_accuracy(f"Held-out accuracy, dropless, {args.tools_n} dialogues with tools", out["tools"])
    if args.n:
        out["routing"] = routing(model, sp, batch)
        print_routing(out["routing"])
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(out, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
