# SPDX-License-Identifier: Apache-2.0
"""Seeded generator of the demo model's dialogues, for training, evaluation and the server's tests.

A dialogue is a list of turns {"role", "content"}; an assistant turn also bears "skill" and "answer" (the heart
of the reply). In a dialogue with tools the system turn bears "tools", an assistant turn may bear "tool_calls", and
turns of role "tool" follow it; `rendered` gives the plain turns and `messages` those of a chat request. The reply is
fully determined by the conversation, so that a test can demand it word for word at temperature 0. Training and
held-out dialogues are disjoint by construction: a hash of everything but the assistant's words decides on which
side a dialogue lies, one in sixteen being held out.

Standard library only. `python3 tests/reference/dialogues.py --held-out --n 20 --seed 1` prints JSON lines.
"""
import argparse
import hashlib
import json
import random

import dialogue_lists as lists
import dialogue_skills as skills
import dialogue_tools as tools
from dialogue_tools import rendered

DEFAULT_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.")
SHORT_SYSTEMS = (
    "", "You are a helpful assistant.", "Be brief.", "You are a friendly assistant.", "Answer in one sentence.",
    "You are the demo model of openmoed.", "Be kind and honest.", "You are a chat assistant. Keep it short.",
    "Talk to the user.", "You answer questions.")
SKILL_NAMES = tuple(name for _, name, _ in skills.SKILLS)
TOOL_SKILLS = tools.SKILL_NAMES
HELD_OUT_SHARE = 16         # one dialogue in so many

_OPENERS = ("Ok. ", "Hey! ", "Thanks. ", "Great. ", "Hm. ", "Next: ", "Please: ", "One more: ", "And now: ",
            "Good. ", "Well, ", "Tell me: ")
_FUNCTIONS = tuple(f for f, _, _ in skills.SKILLS)
_WEIGHTS = tuple(w for _, _, w in skills.SKILLS)
_NAME_OF = {f: name for f, name, _ in skills.SKILLS}


def _system(rng, default_share):
    kind = rng.random()
    if kind < default_share:
        return DEFAULT_SYSTEM
    if kind < default_share + (1 - default_share) * 0.85:
        return rng.choice(SHORT_SYSTEMS)
    return f"You are {lists.made_up_word(rng).capitalize()}, {lists.article(rng.choice(lists.JOBS))}."


def _swap_letters(rng, text):
    """A light typing mistake: two neighbouring letters of one longer word of the template change places."""
    spots = [i for i in range(1, len(text) - 2) if text[i - 1:i + 3].isalpha()]
    if not spots or "{" in text and rng.random() < 0.5:
        return text
    i = rng.choice(spots)
    return text[:i] + text[i + 1] + text[i] + text[i + 2:]


def _roughen(rng, template, lower):
    """What people do to a question: an opener, no capitals, no full stop, a slip of the finger."""
    if rng.random() < 0.12 and template[0].isascii():
        template = rng.choice(_OPENERS) + template
    if lower:
        template = template.lower()
    if rng.random() < (0.6 if lower else 0.12) and template[-1] in ".?!" and template[-2:] != "=?":
        template = template[:-1]
    if rng.random() < 0.02 and "{" not in template:
        template = _swap_letters(rng, template)
    return template


def _ask(rng, state, template, values):
    user = _roughen(rng, template, state.lower)
    for key, value in values.items():
        user = user.replace("{" + key + "}", str(value))
    return user.strip()


def _turn(rng, state, function):
    template, values, reply, answer = function(rng, state)
    return [{"role": "user", "content": _ask(rng, state, template, values)},
            {"role": "assistant", "content": reply, "skill": _NAME_OF[function], "answer": answer}]


def _length(rng, longest):
    """How many exchanges: mostly 1 to 6, a tail of long ones that fill the context."""
    if longest <= 6 or rng.random() < 0.86:
        return min(longest, rng.choice((1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 6)))
    return rng.randint(7, longest)


def _plan(rng, turns, focus, weights):
    """The skills of a dialogue's turns: a free mixture, or many of one kind where `focus` names it."""
    plan = rng.choices(_FUNCTIONS, weights, k=turns)
    if focus:
        plan = [focus if rng.random() < 0.6 else f for f in plan]
    if turns > 1 and skills.ask in plan and skills.tell not in plan[:plan.index(skills.ask)]:
        at = plan.index(skills.ask)             # a question for a fact should mostly have one before it
        if at > 0 and rng.random() < 0.8:
            plan[rng.randrange(at)] = skills.tell
    return plan


def _dialogue(rng, longest, default_share, weights):
    state = skills.State(lower=rng.random() < 0.2)
    focus = rng.choice(_FUNCTIONS[1:6]) if rng.random() < 0.15 else None
    system = _system(rng, default_share)
    out = [{"role": "system", "content": system}]
    for function in _plan(rng, _length(rng, longest), focus, weights):
        out += _turn(rng, state, function)
    return out


def _tool_dialogue(rng, default_share, weights):
    """Half of the turns want a tool, some one that is missing, the rest shows that the other skills go on."""
    state = skills.State(lower=rng.random() < 0.1)
    kit = tools.Kit(rng, lambda template, values: _ask(rng, state, template, values))
    out = [{"role": "system", "content": _system(rng, default_share), "tools": kit.specs()}]
    for function in rng.choices(_FUNCTIONS, weights, k=rng.choice((1, 1, 2, 2, 3, 4))):
        kind = rng.random()
        if kind < 0.5:
            out += kit.turn(state)
        elif kind < 0.7:
            out += kit.missing(state)
        else:
            turns = _turn(rng, state, function)
            while kit.answers(turns[1]["content"]):
                turns = _turn(rng, state, function)
            out += turns
    return out


def is_held_out(dialogue):
    """Which side of the split a dialogue lies on: decided by what the system, the user and the tools say."""
    said = "\x1f".join(t["content"] for t in rendered(dialogue) if t["role"] != "assistant")
    return hashlib.sha256(said.encode()).digest()[0] % HELD_OUT_SHARE == 0


def _stream(seed, want_held_out, longest, default_share, mixture=None, tool_share=0.0):
    weights = [mixture[name] for name in SKILL_NAMES] if mixture else _WEIGHTS
    rng = random.Random(f"{'held-out' if want_held_out else 'train'}-{seed}")
    while True:
        with_tools = tool_share and rng.random() < tool_share
        one = _tool_dialogue(rng, default_share, weights) if with_tools else \
            _dialogue(rng, longest, default_share, weights)
        if is_held_out(one) == want_held_out:
            yield one


def training(seed, longest=30, default_share=0.65, mixture=None, tool_share=0.0):
    """An endless stream of training dialogues; `mixture` may give every skill another weight."""
    return _stream(seed, False, longest, default_share, mixture, tool_share)


def held_out(seed, n, longest=30, default_share=0.65, tool_share=0.0):
    """`n` dialogues that no training stream ever yields."""
    stream = _stream(seed, True, longest, default_share, tool_share=tool_share)
    return [next(stream) for _ in range(n)]


def messages(dialogue):
    """The turns as a chat request's messages; the request's tools are dialogue[0].get("tools")."""
    out, waiting, number = [], [], 0
    for turn in dialogue:
        one = {"role": turn["role"], "content": turn["content"]}
        if turn.get("tool_calls"):
            waiting = [f"call_{number + i}" for i in range(len(turn["tool_calls"]))]
            number += len(waiting)
            one["content"] = turn["content"] or None
            one["tool_calls"] = [{"id": name, "type": "function", "function": {
                "name": call["name"], "arguments": tools.compact(call["arguments"])}}
                for name, call in zip(waiting, turn["tool_calls"])]
        elif turn["role"] == "tool":
            one["tool_call_id"] = waiting.pop(0)
        out.append(one)
    return out


def check(turn, reply):
    """Whether `reply` (of calls: their text) is what the assistant turn `turn` demands, whitespace aside."""
    if turn.get("tool_calls"):
        return tools.parse_calls(reply) == turn["tool_calls"]
    return " ".join(reply.split()) == " ".join(turn["content"].split())


def plain_documents(seed):
    """An endless stream of short plain texts with the same knowledge, for the language-model phase."""
    rng = random.Random(f"plain-{seed}")
    while True:
        state = skills.State(lower=False)
        lines = []
        for _ in range(rng.randint(4, 12)):
            _, _, reply, _ = rng.choice(_FUNCTIONS[2:7])(rng, state)
            lines.append(reply)
        yield " ".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held-out", action="store_true", help="dialogues that training never sees")
    parser.add_argument("--n", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=int, default=30, help="most exchanges in a dialogue (default 30)")
    parser.add_argument("--default-system", type=float, default=0.65,
                        help="share of dialogues with the default system message (default 0.65)")
    parser.add_argument("--tools", type=float, default=0.0, help="share of dialogues with tools (default 0)")
    args = parser.parse_args()
    if args.held_out:
        batch = held_out(args.seed, args.n, args.longest, args.default_system, args.tools)
    else:
        stream = training(args.seed, args.longest, args.default_system, tool_share=args.tools)
        batch = [next(stream) for _ in range(args.n)]
    for one in batch:
        print(json.dumps(one, ensure_ascii=False))


if __name__ == "__main__":
    main()
