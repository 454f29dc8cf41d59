# SPDX-License-Identifier: Apache-2.0
"""What the demo model can do, through the daemon: held-out dialogues, played as chats.

A dialogue's user turns are sent one after the other at temperature 0, with the model's own replies
as the history. Every reply that fits the context is scored word for word. Prints right and total
per skill and per turn.
"""

import asyncio
import collections
import json
import os
import pathlib
import sys

import openai
import pytest

from client import MODEL, connect

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "reference"))
import dialogues  # noqa: E402

SEED, DIALOGUES, AT_ONCE = 2026, 40, 16
WANTED = 0.95


def room_for(daemon, text):
    """Tokens of a reply, with the space and the end marker behind it."""
    body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    return json.loads(daemon.request("POST", "/tokenize", body)[2])["count"] + 2


async def play(client, dialogue, fits):
    """Yields (turn from 1, expected turn, reply)."""
    history = [{"role": "system", "content": dialogue[0]["content"]}]
    for turn, (asked, expected) in enumerate(zip(dialogue[1::2], dialogue[2::2]), 1):
        history.append({"role": "user", "content": asked["content"]})
        try:
            answer = await client.chat.completions.create(
                model=MODEL, messages=history, temperature=0)
        except openai.BadRequestError as e:
            assert e.code == "context_length_exceeded"
            return
        if not fits(answer.usage.prompt_tokens, expected["content"]):
            return
        reply = answer.choices[0].message.content
        yield turn, expected, reply
        history.append({"role": "assistant", "content": reply})


async def play_all(daemon, batch):
    context = json.loads(daemon.get("/v1/models")[2])["data"][0]["max_model_len"]
    seats = asyncio.Semaphore(AT_ONCE)

    def fits(n_prompt, text):
        return n_prompt + room_for(daemon, text) <= context

    async def one(client, dialogue):
        async with seats:
            return [x async for x in play(client, dialogue, fits)]

    async with connect(daemon, openai.AsyncOpenAI) as client:
        return await asyncio.gather(*(one(client, d) for d in batch))


def table(results):
    right, total = collections.Counter(), collections.Counter()
    for played in results:
        for turn, expected, reply in played:
            band = str(turn) if turn <= 6 else "7-12" if turn <= 12 else "13+"
            for row in (expected["skill"], "turn " + band, "all"):
                total[row] += 1
                right[row] += dialogues.check(expected, reply)
    turns = [f"turn {t}" for t in (1, 2, 3, 4, 5, 6, "7-12", "13+")]
    order = [*dialogues.SKILL_NAMES, *turns, "all"]
    lines = [f"  {row:12}{right[row]:5} of {total[row]:4}{100 * right[row] / total[row]:8.1f}%"
             for row in order if total[row]]
    return right, total, "\n".join(lines)


def wrong(results):
    return "\n".join(f"  {e['skill']}, turn {t}: wanted {e['content']!r}, got {reply!r}"
                     for played in results for t, e, reply in played
                     if not dialogues.check(e, reply))


@pytest.mark.skipif("TEST_MODEL" in os.environ, reason="another model is being tested")
def test_held_out_dialogues(daemon, capsys):
    batch = dialogues.held_out(SEED, DIALOGUES)
    assert all(map(dialogues.is_held_out, batch))
    results = asyncio.run(play_all(daemon, batch))
    right, total, lines = table(results)
    with capsys.disabled():
        print(f"\n{DIALOGUES} held-out dialogues, seed {SEED}:\n{lines}")
    for skill in dialogues.SKILL_NAMES:
        assert total[skill] >= 5, f"{skill} is covered"
        assert 2 * right[skill] > total[skill], f"{skill}:\n{wrong(results)}"
    assert right["all"] >= WANTED * total["all"], wrong(results)
