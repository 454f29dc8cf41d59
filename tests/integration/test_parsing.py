# SPDX-License-Identifier: Apache-2.0
"""Bodies that take long to read because a grammar must be compiled: who waits for whom, and what becomes of those whose
client has gone or whose daemon ends. What comes before what is asserted, never how long it takes."""

import json
import select
import signal
import socket

import pytest

from client import eventually
from conftest import SERVED_NAME
from test_tenants import KeyFile, tenant

MANY = 24


def heavy(number):
    """A schema that takes the compiler a good part of a second."""
    properties = {f"p{number}_{i}": {"type": ["string", "number", "null"], "pattern": f"^a{i}.{{0,20}}"}
                  for i in range(50)}
    return {"json": {"type": "object", "properties": properties}}


def chat(form):
    return {"model": SERVED_NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1,
            "structured_outputs": form}


def send(daemon, path, body, key=None):
    """A connection on which the whole request lies."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    s = socket.create_connection((daemon.host, daemon.port), timeout=60)
    s.sendall(head.encode() + b"\r\n" + data)
    return s


def status(s):
    return int(s.recv(4096).split()[1])


def answered(sockets):
    return len(select.select(sockets, [], [], 0)[0])


def compiled(daemon):
    return daemon.metric("openmoed_grammar_cache_misses_total")


@pytest.fixture
def crowd(daemon):
    """Sends heavy requests and closes what is left of them."""
    sockets = []

    def fill(to=daemon, key=None, first=0):
        sockets.extend(send(to, "/v1/chat/completions", chat(heavy(first + i)), key) for i in range(MANY))
        return sockets
    yield fill
    for s in sockets:
        s.close()


def test_others_are_read_meanwhile(daemon, crowd):
    """A long body without a grammar finds a worker, however many grammars are to be compiled."""
    waiting = crowd()
    with send(daemon, "/tokenize", {"model": SERVED_NAME, "prompt": "word " * 20000}) as s:
        assert status(s) == 200
        assert answered(waiting) < MANY // 2


def test_tenants_take_turns(tmp_path, start, crowd):
    keys = KeyFile(tmp_path / "keys.json").write(tenant("busy", "key-of-busy"), tenant("other", "key-of-other"))
    one = start("--api-key-file", keys)
    waiting = crowd(one, "key-of-busy")
    with send(one, "/v1/chat/completions", chat({"regex": "[ab]c"}), "key-of-other") as s:
        assert status(s) == 200
        assert answered(waiting) < MANY // 2
    assert all(status(s) == 200 for s in waiting)


def test_nothing_is_compiled_for_who_has_gone(daemon, crowd):
    before = compiled(daemon)
    for s in crowd(first=1000):
        s.close()
    with send(daemon, "/v1/chat/completions", chat({"regex": "[cd]e"})) as s:
        assert status(s) == 200
    eventually(lambda: daemon.metric("openmoed_connections") == 1)
    assert compiled(daemon) - before < MANY // 2


def test_what_was_compiled_is_counted(daemon):
    def figures():
        return [daemon.metric(f"openmoed_grammar_{name}")
                for name in ("cache_misses_total", "cache_hits_total", "compile_seconds_count")]

    def idle():                 # what the tests before left to compile is counted when it is done
        begun, _, done = figures()
        return begun == done

    eventually(idle)
    before = figures()
    for _ in range(3):
        with send(daemon, "/v1/chat/completions", chat({"regex": "[fg]h"})) as s:
            assert status(s) == 200
    assert [after - was for after, was in zip(figures(), before)] == [1, 2, 1]


@pytest.mark.parametrize("signals", [1, 2], ids=["drain", "at once"])
def test_ends_while_compiling(start, crowd, signals):
    one = start("--drain-timeout", "1")
    crowd(one)
    eventually(lambda: compiled(one) > 0)
    for _ in range(signals):
        one.signal(signal.SIGTERM)
    assert one.wait() == 0, one.log
