# SPDX-License-Identifier: Apache-2.0
"""What the demo model can do, through the daemon: held-out dialogues, played as chats.

A dialogue's user turns are sent one after the other at temperature 0, with the model's own replies
as the history. Every reply that fits the context is scored word for word, a tool call by name and
arguments; after a wrong call the dialogue ends, and the answer to its result counts as wrong too.
Prints right and total per skill and per turn.
"""

import asyncio
import collections
import json
import os
import pathlib
import sys

import openai
import pytest

from client import MODEL, connect, extra, user

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "reference"))
import dialogues  # noqa: E402
import dialogue_tools  # noqa: E402

SEED, DIALOGUES, TOOL_DIALOGUES, AT_ONCE = 2026, 40, 40, 16
WANTED, WANTED_TOOLS = 0.95, 0.8


def room_for(daemon, text):
    """Tokens of a reply, with the space and the end marker behind it."""
    body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    return json.loads(daemon.request("POST", "/tokenize", body)[2])["count"] + 2


def text_of(turn):
    """An assistant turn of a dialogue as the model writes it."""
    return turn["content"] + dialogue_tools.render_calls(turn.get("tool_calls") or [])


def reply_of(message):
    """The same of an answer: tool calls go back to their text."""
    calls = [{"name": c.function.name, "arguments": json.loads(c.function.arguments)}
             for c in message.tool_calls or []]
    return (message.content or "") + dialogue_tools.render_calls(calls)


async def play(client, dialogue, fits):
    """Yields (turn from 1, expected turn, reply)."""
    tools = {"tools": dialogue[0]["tools"]} if "tools" in dialogue[0] else {}
    history, turn = [], 0
    for at, (message, expected) in enumerate(zip(dialogues.messages(dialogue), dialogue)):
        if expected["role"] != "assistant":
            history.append(message)
            continue
        turn += 1
        try:
            answer = await client.chat.completions.create(
                model=MODEL, messages=history, temperature=0, **tools)
        except openai.BadRequestError as e:
            assert e.code == "context_length_exceeded"
            return
        if not fits(answer.usage.prompt_tokens, text_of(expected)):
            return
        reply = reply_of(answer.choices[0].message)
        yield turn, expected, reply
        if "tool_calls" not in expected:
            history.append({"role": "assistant", "content": reply})
        elif dialogues.check(expected, reply):
            assert answer.choices[0].finish_reason == "tool_calls"
            history.append(message)  # the same calls, with the ids that their results name
        else:
            later = [t for t in dialogue[at + 1:] if t["role"] == "assistant"]
            yield turn + 1, later[0], ""
            return


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
    order = [*dialogues.SKILL_NAMES, *dialogues.TOOL_SKILLS, *turns, "all"]
    lines = [f"  {row:12}{right[row]:5} of {total[row]:4}{100 * right[row] / total[row]:8.1f}%"
             for row in order if total[row]]
    return right, total, "\n".join(lines)


def wrong(results):
    return "\n".join(f"  {e['skill']}, turn {t}: wanted {text_of(e)!r}, got {reply!r}"
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


@pytest.mark.skipif("TEST_MODEL" in os.environ, reason="another model is being tested")
def test_held_out_dialogues_with_tools(daemon, capsys):
    batch = dialogues.held_out(SEED, TOOL_DIALOGUES, tool_share=1.0)
    assert all(map(dialogues.is_held_out, batch))
    results = asyncio.run(play_all(daemon, batch))
    right, total, lines = table(results)
    with capsys.disabled():
        print(f"\n{TOOL_DIALOGUES} held-out dialogues with tools, seed {SEED}:\n{lines}")
    for skill in dialogues.TOOL_SKILLS:
        assert total[skill] >= 5, f"{skill} is covered"
        assert 2 * right[skill] > total[skill], f"{skill}:\n{wrong(results)}"
    assert right["all"] >= WANTED_TOOLS * total["all"], wrong(results)


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
ASKED = {"model": MODEL, "temperature": 0, "tools": [WEATHER]}


@pytest.mark.skipif("TEST_MODEL" in os.environ, reason="another model is being tested")
def test_a_tool_from_question_to_answer(daemon):
    """tool_choice auto: the model decides to call, and puts the result into words."""
    history = [user("What is the weather in Paris?")]
    with connect(daemon) as client:
        called = client.chat.completions.create(**ASKED, messages=history).choices[0]
        assert called.finish_reason == "tool_calls" and called.message.content is None
        (call,) = called.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
        result = json.dumps({"weather": "sunny", "temperature": 21}, separators=(",", ":"))
        history += [called.message, {"role": "tool", "tool_call_id": call.id, "content": result}]
        answer = client.chat.completions.create(**ASKED, messages=history).choices[0]
        assert answer.finish_reason == "stop" and not answer.message.tool_calls
        assert answer.message.content == "It is sunny in Paris, 21 degrees."


@pytest.mark.skipif("TEST_MODEL" in os.environ, reason="another model is being tested")
def test_a_tool_is_called_only_where_it_helps(daemon):
    with connect(daemon) as client:
        for question, words in (("Hello!", "Hello! How can I help you?"),
                                ("What is my name?", "You have not told me your name yet.")):
            choice = client.chat.completions.create(**ASKED, messages=[user(question)]).choices[0]
            assert (choice.finish_reason, choice.message.content) == ("stop", words)
        both = [user("What is the weather in Paris and in Rome?")]
        calls = client.chat.completions.create(**ASKED, messages=both).choices[0].message.tool_calls
        assert [json.loads(c.function.arguments) for c in calls] == [{"city": "Paris"}, {"city": "Rome"}]


def prompt_of(client, messages, **fields):
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=1, extra_body={"return_token_ids": True}, **fields)
    return extra(answer, "prompt_token_ids")


def test_tools_and_their_text_are_the_same_prompt(daemon):
    """Tools, calls and results as such, against plain messages of the text that the model was trained on."""
    batch = [d for d in dialogues.held_out(SEED, 20, tool_share=1.0) if any(t["role"] == "tool" for t in d)]
    assert len(batch) > 5
    with connect(daemon) as client:
        for dialogue in batch:
            text = [{"role": t["role"], "content": t["content"]} for t in dialogue_tools.rendered(dialogue)[:-1]]
            assert prompt_of(client, text) == prompt_of(
                client, dialogues.messages(dialogue)[:-1], tools=dialogue[0]["tools"])
