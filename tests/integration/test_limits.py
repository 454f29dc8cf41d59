# SPDX-License-Identifier: Apache-2.0
"""Limits against abuse: connections in all and per address, descriptors, header and body sizes and times,
idle connections, readers that stop, listening without a key; and messages that are refused in our form."""

import json
import os
import re
import resource
import socket
import time

import pytest

import conftest
from client import eventually
from listeners import SHORT, read_answer, refused
from test_http import LONG, cancelled, error_of, events, nothing_runs, open_stream, post_bytes, raw

MODELS = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
REFUSALS = 128  # that are answered at a time; beyond them connections are closed


def connect(daemon, source=None):
    return socket.create_connection((daemon.host, daemon.port), timeout=30,
                                    source_address=(source, 0) if source else None)


def ask(s, data=MODELS):
    """Status, headers, body; None where the connection was closed."""
    try:
        s.sendall(data)
        return read_answer(s.makefile("rb"))
    except ConnectionError:
        return None


def metric(s, name):
    """Of /metrics, asked over a connection that is there."""
    page = ask(s, METRICS)[2].decode()
    return int(re.search(rf"^{name} (\d+)$", page, re.M)[1])


def wait_for(s, n):
    """Until n connections are open, this one among them: others that were closed may linger."""
    eventually(lambda: metric(s, "openmoed_connections") == n)


def hold(daemon, n, source=None, others=0):
    """n connections that are served, beside so many others; the first waits until there is room for it."""
    held = []

    def first():
        s = connect(daemon, source)
        _, headers, page = ask(s, METRICS)
        if "connection" not in headers and f"\nopenmoed_connections {1 + others}\n" in page.decode():
            held.append(s)
            return True
        s.close()
        return False

    eventually(first)
    held += [connect(daemon, source) for _ in range(n - 1)]
    for s in held:
        assert ask(s)[0] == 200
    return held


def close(held):
    for s in held:
        s.close()


def closed_after(s, data=b""):
    """Seconds until the other side closes."""
    began = time.monotonic()
    try:
        s.sendall(data)
        while s.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - began


# ---- connections


def test_max_connections(start):
    daemon = start("--max-connections", "10")
    held = hold(daemon, 10)
    with connect(daemon) as s:
        status, headers, body = ask(s)
        assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "5")
        assert error_of(body)["type"] == "server_error"
        assert s.recv(1) == b""
    # who looks after the server still sees it, and its answers end their connections
    with connect(daemon) as s:
        status, headers, body = ask(s, HEALTH)
        assert (status, headers["connection"]) == (200, "close")
        assert s.recv(1) == b""
    assert metric(held[0], "openmoed_connections_refused_total") == 2
    with connect(daemon) as s:  # a body does no harm
        body = json.dumps(SHORT).encode()
        assert ask(s, post_bytes("/v1/completions", body, f"Content-Length: {len(body)}"))[0] == 503
    # those that were there are served on, and a place that is free is taken
    assert all(ask(s)[0] == 200 for s in held)
    held.pop().close()
    wait_for(held[0], 9)
    with connect(daemon) as s:
        assert ask(s)[0] == 200
    close(held)


def test_far_more_connections_than_allowed(start):
    daemon = start("--max-connections", "10", "--header-timeout", "2")
    held = hold(daemon, 10)
    more = [connect(daemon) for _ in range(REFUSALS + 50)]
    silent = more[:REFUSALS]
    eventually(lambda: sum(closed_now(s) for s in more) >= 50)
    assert all(ask(s)[0] == 200 for s in held)
    # the silent ones lose their places in time, and the daemon is as before
    for s in silent:
        closed_after(s)
    close(more)
    wait_for(held[0], 10)
    close(held)
    close(hold(daemon, 10))


def closed_now(s):
    s.setblocking(False)
    try:
        return s.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        s.settimeout(30)


def test_per_address(start):
    daemon = start("--max-connections-per-address", "5")
    held = hold(daemon, 5, "127.0.0.2")
    with connect(daemon, "127.0.0.2") as s:
        status, headers, body = ask(s)
        assert (status, headers["connection"]) == (429, "close") and "retry-after" in headers
        error_of(body)
    others = hold(daemon, 5, "127.0.0.3", others=5)  # which are not concerned
    held.pop().close()
    wait_for(others[0], 9)
    close(hold(daemon, 1, "127.0.0.2", others=9))
    close(held + others)


def test_refused_connections_take_no_places(start):
    """One address that holds far more than its share, without a word."""
    daemon = start("--max-connections", "20", "--max-connections-per-address", "5", "--header-timeout", "600")
    held = hold(daemon, 5, "127.0.0.2")
    silent = [connect(daemon, "127.0.0.2") for _ in range(REFUSALS + 50)]
    wait_for(held[0], 5 + REFUSALS)
    others = hold(daemon, 5, "127.0.0.3", others=5 + REFUSALS)
    assert all(ask(s)[0] == 200 for s in held)
    close(held + silent + others)


def test_the_limit_of_open_files_bounds_connections(start, tmp_path, monkeypatch):
    script = tmp_path / "openmoed"
    script.write_text(f'#!/bin/sh\nulimit -n 300\nexec "{conftest.BINARY}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(conftest, "BINARY", str(script))
    daemon = start()
    assert "--max-connections 4096: the limit of open files allows only 44" in daemon.log
    held = hold(daemon, 44)
    more = [connect(daemon) for _ in range(400)]
    with connect(daemon) as s:
        assert ask(s) is None or ask(s)[0] == 503
    assert all(ask(s)[0] == 200 for s in held)
    close(more)
    wait_for(held[0], 44)
    close(held)
    close(hold(daemon, 44))


def test_running_out_of_descriptors_ends_nothing(start):
    """Something else took what was counted on: accept fails, and goes on when there is room again."""
    daemon = start()
    pid = daemon.process.pid
    held = hold(daemon, 8)
    open_now = len(os.listdir(f"/proc/{pid}/fd"))
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now, before[1]))
    waiting = [connect(daemon) for _ in range(20)]
    for s in waiting:
        s.sendall(MODELS)
    assert all(ask(s)[0] == 200 for s in held)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    close(held[:1])  # a connection that ends lets accept go on
    assert all(read_answer(s.makefile("rb"))[0] == 200 for s in waiting)
    close(held + waiting)


# ---- sizes


def test_header_size(start):
    daemon = start("--max-header-size", "2K")
    rest = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: "
    fits = rest + b"y" * (2048 - len(rest) - 4) + b"\r\n\r\n"
    assert raw(daemon, fits).startswith(b"HTTP/1.1 200 ")
    answer = raw(daemon, fits[:-4] + b"y\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert "2048 bytes" in error_of(answer.partition(b"\r\n\r\n")[2])["message"]
    assert raw(daemon, rest + b"y" * 10000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    assert raw(daemon, rest + b"y" * 100000 + b"\r\n\r\n")[:13] in (b"", b"HTTP/1.1 431 ")
    lines = b"".join(b"x%d: y\r\n" % i for i in range(100))
    assert raw(daemon, rest + b"\r\n" + lines + b"\r\n").startswith(b"HTTP/1.1 200 ")
    assert daemon.get("/health")[0] == 200


def test_large_headers_where_they_are_allowed(start):
    daemon = start("--max-header-size", "200K")
    head = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: " + b"y" * 190000 + b"\r\n\r\n"
    assert raw(daemon, head).startswith(b"HTTP/1.1 200 ")
    body = json.dumps({**SHORT, "stream": True}).encode()
    head = post_bytes("/v1/completions", body, f"Content-Length: {len(body)}", "X: " + "y" * 190000,
                      "Connection: close")
    assert b"data: [DONE]" in raw(daemon, head)


# ---- times


def test_header_timeout(start):
    daemon = start("--header-timeout", "1", "--keep-alive-timeout", "600")
    for data in (b"", b"GET /health HTTP/1.1\r\nHost: a\r\n"):
        with connect(daemon) as s:
            closed_after(s, data)
    with connect(daemon) as s:  # a header in time, though in pieces
        s.sendall(HEALTH[:10])
        time.sleep(0.3)
        assert ask(s, HEALTH[10:])[0] == 200


def test_body_timeout(start):
    daemon = start("--body-timeout", "1", "--keep-alive-timeout", "600")
    with connect(daemon) as s:
        closed_after(s, post_bytes("/v1/completions", b"{", "Content-Length: 1000"))
    # what arrives earns time: 8K a second
    with connect(daemon) as s:
        body = json.dumps(SHORT).encode() + b" " * 40000
        s.sendall(post_bytes("/v1/completions", b"", f"Content-Length: {len(body)}"))
        s.sendall(body[:-1])
        time.sleep(2)
        assert ask(s, body[-1:])[0] == 200


def test_keep_alive_timeout(start):
    daemon = start("--keep-alive-timeout", "1", "--header-timeout", "600", "--max-num-seqs", "1")
    with connect(daemon) as s:
        assert ask(s)[0] == 200
        closed_after(s)
    # not in the middle of an answer that takes longer
    conn, answer = open_stream(daemon, {**LONG, "n": 2})
    assert events(answer)[-1] == "[DONE]"
    conn.close()


def test_a_kept_connection_that_begins_a_header_and_stops(start):
    daemon = start("--keep-alive-timeout", "1", "--header-timeout", "1")
    with connect(daemon) as s:
        assert ask(s)[0] == 200
        end = time.monotonic() + 30
        try:
            while time.monotonic() < end:  # never idle, never done
                s.sendall(b"X")
                time.sleep(0.2)
            pytest.fail("the connection was left open")
        except ConnectionError:
            pass


def test_max_stream_buffer(start):
    """The less is kept of what is not read, the fewer tokens are made for nobody."""
    made = []
    for size in ("16K", "1G"):
        daemon = start("--max-stream-buffer", size)
        body = json.dumps({**LONG, "prompt": [[0, 5, 6, 7]] * 8, "n": 16, "logprobs": 5}).encode()
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect((daemon.host, daemon.port))
            s.sendall(post_bytes("/v1/completions", body, f"Content-Length: {len(body)}"))
            if size == "1G":
                eventually(lambda: daemon.metric("openmoed_generated_tokens_total") > 2 * made[0] + 2000, 120)
                assert cancelled(daemon) == 0
            else:
                eventually(lambda: cancelled(daemon) == 1 and nothing_runs(daemon), 120)
        made.append(daemon.metric("openmoed_generated_tokens_total"))
        daemon.stop()


# ---- who may ask


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_a_key_only_this_machine_may_ask(host):
    line = refused("--host", host)
    assert f"--host {host}" in line and "without a key" in line
    for name in ("--api-key", "--api-key-file", "--insecure-no-auth on"):
        assert name in line


def test_with_a_key_every_machine_may(start):
    daemon = start("--host", "0.0.0.0", "--api-key", "secret")
    assert daemon.get("/v1/models")[0] == 401


def test_unless_it_is_said_in_so_many_words(start):
    daemon = start("--host", "0.0.0.0", "--insecure-no-auth", "on")
    assert daemon.get("/v1/models")[0] == 200
    assert "answers other machines without a key" in daemon.log


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "::ffff:127.0.0.1"])
def test_this_machine_needs_no_key(start, host):
    if ":" in host and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    daemon = start("--host", host, wait=False)
    assert f"listening on http://{'[' if ':' in host else ''}{host}" in daemon.log
    assert "without a key" not in daemon.log


# ---- our form


@pytest.mark.parametrize("head", [
    "GET /health HTTP/1.1",                                   # no Host
    "GET /v1/models/test-model%00x HTTP/1.1\r\nHost: a",      # would be cut
    "GET /health%00 HTTP/1.1\r\nHost: a",
    "GET /health?a=%00 HTTP/1.1\r\nHost: a",
    "GET /v1/models/a b HTTP/1.1\r\nHost: a",                 # where does the target end?
    "GET /health HTTP/1.1 HTTP/1.1\r\nHost: a",
])
def test_odd_messages_get_the_envelope(daemon, head):
    answer = raw(daemon, head.encode() + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in top.lower() and b"x-request-id: " in top.lower()
    assert error_of(body)["type"] == "invalid_request_error"


def test_what_only_looks_odd(daemon):
    """An encoded blank, and a NUL that is encoded twice."""
    for path in ("/v1/models/a%20b", "/v1/models/a%2500b"):
        assert daemon.get(path)[0] == 404
    assert raw(daemon, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.")


# ---- what a body may be ----------------------------------------------------------------------------------------------


def test_depth_and_values_of_a_body(start):
    daemon = start("--max-json-depth", "8", "--max-json-values", "64")

    def refusal(value):
        body = json.dumps({"model": daemon.model, "messages": [], "x": value}).encode()
        with connect(daemon) as s:
            status, _, answer = ask(s, post_bytes("/v1/chat/completions", body, f"Content-Length: {len(body)}"))
        assert status == 400
        return error_of(answer)

    def nested(levels):
        return [nested(levels - 1)] if levels > 1 else []

    assert refusal(nested(7))["code"] == "unknown_parameter"    # the body itself is the eighth level
    assert "nested too deeply" in refusal(nested(8))["message"]
    assert refusal([1] * 40)["code"] == "unknown_parameter"
    assert "too many values" in refusal([1] * 80)["message"]
