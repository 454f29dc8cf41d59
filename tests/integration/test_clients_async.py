# SPDX-License-Identifier: Apache-2.0
"""The asynchronous `openai` client: many requests at once, and many of them given up at random points, after which
nothing of them is left: no sequence, no block, no connection, no memory."""

import asyncio
import collections
import os
import random
import sys
from typing import Annotated

import openai
import pydantic
import pytest

from client import MODEL, Stream, connect, user
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "load"))
import overload  # noqa: E402

QUESTIONS = ("Hello!", "What is 7 + 8?", "Spell the word tiger.", "Hi, I am Mina and I live in Lisbon.")
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 40}
ROUNDS, WORKERS, EACH = 3, 16, 3  # rounds of so many tasks at once with so many requests one after the other
GROWTH_KIB = 4096  # from the second round to the last
OUTCOMES = ("stop", "length", "cancelled", "error", "rejected")


def run(work):
    return asyncio.run(asyncio.wait_for(work, 120))


def text(answer):
    return answer.choices[0].message.content


def test_many_at_once_are_answered_like_one(daemon):
    asked = [{**GREEDY, "messages": [user(QUESTIONS[i % len(QUESTIONS)])]} for i in range(32)]

    async def whole(client, one):
        return text(await client.chat.completions.create(**one))

    async def streamed(client, one):
        stream = await client.chat.completions.create(**one, stream=True, stream_options={"include_usage": True})
        return Stream([chunk async for chunk in stream]).text[0]

    async def all_of_them():
        async with connect(daemon, openai.AsyncOpenAI) as client:
            return await asyncio.gather(*((streamed if i % 2 else whole)(client, one) for i, one in enumerate(asked)))

    with connect(daemon) as client:
        alone = {one: text(client.chat.completions.create(**GREEDY, messages=[user(one)])) for one in QUESTIONS}
    assert run(all_of_them()) == [alone[one["messages"][0]["content"]] for one in asked]


def test_stream_helper(daemon):
    async def events():
        async with connect(daemon, openai.AsyncOpenAI) as client:
            async with client.chat.completions.stream(**GREEDY, messages=[user("Hello!")]) as stream:
                kinds = [event.type async for event in stream]
                return kinds, await stream.get_final_completion()

    kinds, answer = run(events())
    assert kinds[-1] == "content.done" and kinds.count("content.delta") > 1
    with connect(daemon) as client:
        assert text(answer) == text(client.chat.completions.create(**GREEDY, messages=[user("Hello!")]))


class Sum(pydantic.BaseModel):
    """Bounded, so that an answer of random tokens ends."""
    a: Annotated[int, pydantic.Field(ge=0, le=99)]
    b: Annotated[int, pydantic.Field(ge=0, le=99)]


def test_parsed_answers_and_calls_at_once(daemon):
    asked = {"model": MODEL, "messages": [user("Add 3 and 4.")], "max_tokens": 300, "temperature": 1.5}
    call = {"tools": [openai.pydantic_function_tool(Sum)], "tool_choice": "required", "parallel_tool_calls": False}

    async def parsed(client, seed):
        answer = await client.chat.completions.parse(**asked, seed=seed, response_format=Sum)
        return answer.choices[0].message.parsed

    async def called(client, seed):
        async with client.chat.completions.stream(**asked, **call, seed=seed) as stream:
            kinds = [event.type async for event in stream]
            (one,) = (await stream.get_final_completion()).choices[0].message.tool_calls
        assert "tool_calls.function.arguments.delta" in kinds
        return one.function.parsed_arguments

    async def all_of_them():
        async with connect(daemon, openai.AsyncOpenAI) as client:
            return await asyncio.gather(*(kind(client, seed) for seed in range(6) for kind in (parsed, called)))

    found = run(all_of_them())
    assert all(isinstance(one, Sum) for one in found)
    assert len({(one.a, one.b) for one in found}) > 3


def test_errors_and_timeouts(daemon):
    async def both():
        async with connect(daemon, openai.AsyncOpenAI) as client:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(**{**GREEDY, "temperature": 9}, messages=[user("Hello!")])
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(
                    **{**GREEDY, "max_tokens": 900}, messages=[user("Hello!")], n=16, timeout=0.05,
                    extra_body={"ignore_eos": True})
            return refused.value

    assert run(both()).param == "temperature"
    assert not overload.wait_idle(daemon)


class Storm:
    """One round: tasks that ask, and of which about half are cancelled or walk away at random points."""

    def __init__(self, daemon, seed):
        self.daemon, self.dice = daemon, random.Random(seed)
        self.told = collections.Counter()
        run(self._all())

    async def _all(self):
        async with connect(self.daemon, openai.AsyncOpenAI) as client:
            await asyncio.gather(*(self._worker(client) for _ in range(WORKERS)))

    async def _worker(self, client):
        for _ in range(EACH):
            task = asyncio.create_task(self._ask(client))
            if self.dice.random() < 0.4:  # somewhere between the connect and the end
                await asyncio.wait([task], timeout=self.dice.expovariate(8))
                task.cancel()
            try:
                self.told[await task] += 1
            except asyncio.CancelledError:
                self.told["cancelled"] += 1

    async def _ask(self, client):
        dice = self.dice
        limit = dice.randrange(1, 100)
        asked = {"model": MODEL, "messages": [user("word " * dice.randrange(150))], "max_tokens": limit,
                 "n": dice.choice((1, 1, 1, 4)), "seed": dice.randrange(99), "extra_body": {"ignore_eos": True}}
        if dice.random() < 0.3:
            answer = await client.chat.completions.create(**asked)
            assert answer.usage.completion_tokens == limit * asked["n"]
            return "answered"
        leave_after = dice.randrange(limit) if dice.random() < 0.4 else None
        stream = await client.chat.completions.create(**asked, stream=True)
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == leave_after:
                await stream.close()
                return "left"
        assert set(Stream(chunks).finish.values()) == {"length"}
        return "answered"


def sanitized(daemon):
    with open(f"/proc/{daemon.process.pid}/maps", encoding="utf-8") as maps:
        return any(name in line for line in maps for name in ("libasan", "libtsan"))


def test_cancelled_at_random_points_nothing_is_left(start):
    seed = int(os.environ.get("TEST_SEED", random.randrange(1 << 32)))
    print(f"TEST_SEED={seed}")  # shown when this fails
    # less room than the storm wants: sequences wait, and give up their blocks to each other
    daemon = start("--max-num-seqs", "16", "--kv-cache-memory", "4M")
    ask = {**GREEDY, "messages": [user("Spell the word tiger.")]}
    with connect(daemon) as client:
        before = text(client.chat.completions.create(**ask))
    descriptors, memory, told = overload.descriptors(daemon.process.pid), [], collections.Counter()
    for turn in range(ROUNDS):
        storm = Storm(daemon, seed + turn)
        assert not overload.wait_idle(daemon), overload.left_over(daemon)
        memory.append(overload.rss_kib(daemon.process.pid))
        told.update(storm.told)
        print(storm.told, f"{memory[-1]} KiB")
        # but for the connection of the latest look at /metrics
        assert overload.descriptors(daemon.process.pid) <= descriptors + 1
    ended = {name: daemon.metric(f'openmoed_requests_total{{outcome="{name}"}}') for name in OUTCOMES}
    assert ended["error"] == ended["rejected"] == 0 and ended["cancelled"] > 0, ended
    assert told.total() == ROUNDS * WORKERS * EACH and len(told) == 3, told
    assert sum(ended.values()) == daemon.metric("openmoed_request_duration_seconds_count") <= told.total() + 1
    if not sanitized(daemon):  # sanitizers keep freed memory back
        assert memory[-1] <= memory[1] + GROWTH_KIB
    with connect(daemon) as client:
        assert text(client.chat.completions.create(**ask)) == before
    assert daemon.stop() == 0, daemon.log
