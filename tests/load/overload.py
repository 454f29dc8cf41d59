# SPDX-License-Identifier: Apache-2.0
"""Many more clients than a server has room for, each on a connection of its own, all open at once.

A client asks for chats of mixed lengths, streamed and whole, until its time is up. Refused with 429 it comes back
when Retry-After says so; every third request is given up midway: before the answer begins, after its head, or
between two of its pieces; one in fifty can never fit. All that comes back is read and judged: lost is what is
neither a whole answer nor a clean refusal. Standard library only; used by served.py and
tests/integration/test_overload.py, with a Daemon of tests/integration/conftest.py.
"""
import asyncio
import collections
import json
import os
import random
import resource
import time

WORDS = ("time", "house", "water", "light", "story", "music", "green", "seven", "people", "morning")
PATIENCE = 120          # seconds for one request


class Lost(Exception):
    """Neither an answer nor a clean refusal; the text says what came instead."""


class Vanished(Exception):
    """The client hung up, as it meant to."""


def rss_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next((int(line.split()[1]) for line in f if line.startswith("VmRSS:")), 0)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def left_over(daemon):
    """What a daemon without work must not have: series of /metrics that are not 0, blocks that are not free."""
    left = {name: daemon.metric(f"openmoed_{name}")
            for name in ("requests_running", "requests_waiting", "tokens_waiting")}
    left["kv_blocks"] = daemon.metric('openmoed_kv_blocks{state="total"}') - daemon.metric(
        'openmoed_kv_blocks{state="free"}')
    return {name: value for name, value in left.items() if value}


def wait_idle(daemon, seconds=60):
    """left_over once nothing is left, or after so many seconds."""
    end = time.monotonic() + seconds
    while left_over(daemon) and time.monotonic() < end:
        time.sleep(0.05)
    return left_over(daemon)


# ---- one request ------------------------------------------------------------------------------------------------


async def read_head(reader):
    line = await reader.readline()
    if not line.startswith(b"HTTP/1.1 "):
        raise Lost("closed without an answer" if not line else "not HTTP")
    status, headers = int(line.split()[1]), {}
    while (line := (await reader.readline()).rstrip()):
        key, _, value = line.decode("latin-1").partition(":")
        headers[key.lower()] = value.strip()
    return status, headers


async def read_pieces(reader, headers):
    if headers.get("transfer-encoding") != "chunked":
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while (size := int(await reader.readline(), 16)):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()


def judge(status, headers, body, stream, too_long):
    """Lost, unless it is what was asked for or a refusal that says why and when to come back."""
    if status == 200 and stream:
        events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            raise Lost("a stream without [DONE]")
        chunks = [json.loads(e) for e in events[:-1]]
        if any("error" in c for c in chunks):
            raise Lost("an error in a stream")
        if not any(choice["finish_reason"] for c in chunks for choice in c["choices"]):
            raise Lost("a stream without finish_reason")
        return
    answer = json.loads(body)
    if status == 200:
        if not answer["choices"][0]["finish_reason"]:
            raise Lost("an answer without finish_reason")
    elif not answer["error"]["message"] or (status == 429) != ("retry-after" in headers):
        raise Lost(f"{status} without a message, or Retry-After out of place")
    elif status != (400 if too_long else 429):
        raise Lost(f"{status}: {answer['error']['message']}")


class Client:
    """One connection and what is asked over it; outcomes are counted in `tally`, losses in `lost`."""

    def __init__(self, daemon, longest, rng, tally, lost):
        self.daemon, self.longest, self.rng, self.tally, self.lost = daemon, longest, rng, tally, lost
        self.reader = self.writer = None

    async def connect(self):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.daemon.host, self.daemon.port)

    def hang_up(self):
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None

    def _send(self, stream, too_long):
        words = 20000 if too_long else int(self.rng.triangular(1, self.longest, 10))
        message = {"role": "user", "content": " ".join(self.rng.choice(WORDS) for _ in range(words))}
        body = json.dumps({"model": self.daemon.model, "messages": [message], "stream": stream, "ignore_eos": True,
                           "max_tokens": self.rng.randint(1, self.longest)}).encode()
        self.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                          b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async def _ask(self):
        """Status of one request, and seconds after which to come back."""
        stream, too_long = self.rng.random() < 0.67, self.rng.random() < 0.02
        leave = self.rng.choice(("early", "head", "midway")) if self.rng.random() < 1 / 3 else None
        pieces, body = self.rng.randint(1, 20), b""
        await self.connect()
        self._send(stream, too_long)
        if leave == "early":
            await asyncio.sleep(self.rng.random() / 2)
            raise Vanished
        status, headers = await read_head(self.reader)
        if leave == "head" and status == 200:
            raise Vanished
        async for piece in read_pieces(self.reader, headers):
            body += piece
            pieces -= 1
            if leave == "midway" and status == 200 and pieces <= 0:
                raise Vanished
        judge(status, headers, body, stream, too_long)
        if headers.get("connection", "").lower() == "close":
            self.hang_up()
        return status, float(headers.get("retry-after", 0))

    async def run(self, end):
        while time.monotonic() < end:
            pause = 0
            try:
                status, pause = await asyncio.wait_for(self._ask(), PATIENCE)
                self.tally[str(status)] += 1
            except Vanished:
                self.tally["vanished"] += 1
                self.hang_up()
            except (Lost, OSError, EOFError, ValueError, KeyError, asyncio.TimeoutError) as e:
                self.tally["lost"] += 1
                self.lost[f"{type(e).__name__}: {e}"[:120]] += 1
                self.hang_up()
            if pause:
                await asyncio.sleep(pause * self.rng.uniform(1, 2))
        self.hang_up()


# ---- one round --------------------------------------------------------------------------------------------------


async def _round(daemon, connections, seconds, longest, seed, result):
    clients = [Client(daemon, longest, random.Random(f"{seed}-{i}"), result.tally, result.lost)
               for i in range(connections)]
    await asyncio.gather(*(c.connect() for c in clients))
    end = time.monotonic() + PATIENCE
    while result.descriptors < connections and time.monotonic() < end:     # the kernel connects before it accepts
        result.descriptors = descriptors(daemon.process.pid)
        await asyncio.sleep(0.01)
    runs = asyncio.gather(*(c.run(time.monotonic() + seconds) for c in clients))
    while not runs.done():
        if daemon.process.poll() is not None:
            raise RuntimeError(f"the daemon ended with {daemon.process.returncode}:\n{daemon.log}")
        result.peak_kib = max(result.peak_kib, rss_kib(daemon.process.pid))
        await asyncio.wait([runs], timeout=0.05)
    runs.result()


class Round:
    """tally: requests by status, `vanished` or `lost`; lost: what came instead; descriptors and peak_kib of the
    daemon; left: what it still had of the round afterwards; after_kib: its memory then."""

    def __init__(self, daemon, connections, seconds, longest=200, seed=1):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.tally, self.lost = collections.Counter(), collections.Counter()
        self.descriptors = self.peak_kib = 0
        begun = time.monotonic()
        asyncio.run(_round(daemon, connections, seconds, longest, seed, self))
        self.seconds = time.monotonic() - begun
        self.left = wait_idle(daemon)
        time.sleep(1)               # within which the daemon gives memory back
        self.after_kib = rss_kib(daemon.process.pid)
        self.after_descriptors = descriptors(daemon.process.pid)
