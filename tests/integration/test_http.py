# SPDX-License-Identifier: Apache-2.0
"""The transport: routing, refusals, connections that misbehave or go away, drain and load.

Prompts are token ids, so that a model without a tokenizer does too.
"""

import http.client
import json
import signal
import socket
import threading
import time

import pytest

PROMPT = [0, 5, 6, 7]
BASE = {"model": "test-model", "prompt": PROMPT, "ignore_eos": True, "temperature": 0}
LONG = {**BASE, "max_tokens": 900, "stream": True}
SHORT = {**BASE, "max_tokens": 8}


def raw(daemon, data, timeout=30):
    """Sends bytes and reads until the other side closes."""
    with socket.create_connection((daemon.host, daemon.port), timeout=timeout) as s:
        s.sendall(data)
        return read_all(s)


def read_all(s):
    got = b""
    while True:
        try:
            piece = s.recv(65536)
        except ConnectionResetError:
            return got
        if not piece:
            return got
        got += piece


def post_bytes(path, body, *headers):
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def error_of(body):
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def open_stream(daemon, body=None):
    """A connection whose stream has begun: socket and response."""
    conn = daemon.connection()
    conn.request(
        "POST", "/v1/completions", json.dumps(body or LONG), {"Content-Type": "application/json"}
    )
    answer = conn.getresponse()
    assert answer.status == 200
    assert answer.readline().startswith(b"data: {")
    return conn, answer


def events(answer):
    """Everything up to the end of a stream, as the data of its events."""
    return [e.removeprefix("data: ") for e in answer.read().decode().split("\n\n") if e.strip()]


def eventually(probe, seconds=20):
    end = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


# ---- routing


def test_health_and_head(daemon):
    status, headers, body = daemon.get("/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    again = daemon.request("HEAD", "/health")
    assert again[0] == 200 and again[2] == b""
    assert again[1]["content-length"] == str(len(body))
    assert again[1]["x-request-id"] != headers["x-request-id"]


def test_unknown_path(daemon):
    for path in ("/static/", "/static/none.js", "/v1", "/v1/models/", "/healthy", "/v1/chat/completions/x"):
        status, headers, body = daemon.get(path)
        assert status == 404, path
        assert headers["content-type"] == "application/json"
        assert error_of(body)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "method, path, allow",
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/completions", "POST"),
        ("OPTIONS", "/tokenize", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/models/x", "GET, HEAD"),
    ],
)
def test_wrong_method(daemon, method, path, allow):
    status, headers, body = daemon.request(method, path)
    assert (status, headers["allow"]) == (405, allow)
    if method != "HEAD":
        error_of(body)


def test_models(daemon):
    models = json.loads(daemon.get("/v1/models")[2])["data"]
    assert len(models) == 1
    status, _, body = daemon.get("/v1/models/" + models[0]["id"])
    assert (status, json.loads(body)["id"]) == (200, models[0]["id"])
    assert daemon.get("/v1/models/no-such-model")[0] == 404


def test_metrics_page(daemon):
    status, headers, body = daemon.get("/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"openmoed_requests_running 0\n" in body
    before = daemon.metric('openmoed_http_responses_total{code="404"}')
    daemon.get("/nowhere")
    assert daemon.metric('openmoed_http_responses_total{code="404"}') == before + 1


# ---- bodies


def test_content_type(daemon):
    body = json.dumps(SHORT)
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        assert daemon.request("POST", "/v1/completions", body, {"Content-Type": kind})[0] == 200
    assert daemon.request("POST", "/v1/completions", body)[0] == 200
    for kind in ("text/plain", "application/jsonp", "application/x-www-form-urlencoded"):
        answer = daemon.request("POST", "/v1/completions", body, {"Content-Type": kind})
        assert answer[0] == 415, kind
        error_of(answer[2])


def test_bad_json(daemon):
    for body in (b"", b"{", b"[1]", b'{"a":1}x'):
        answer = daemon.request("POST", "/v1/completions", body)
        assert answer[0] == 400, body
        error_of(answer[2])


def test_length_over_the_limit_is_answered_early(start):
    daemon = start("--max-body-size", "100K")
    head = post_bytes("/v1/completions", b"", "Content-Length: 102401")
    answer = raw(daemon, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    error_of(answer.partition(b"\r\n\r\n")[2])
    answer = raw(daemon, post_bytes("/v1/completions", b"", "Content-Length: " + "9" * 30))
    assert answer.startswith(b"HTTP/1.1 413 ")
    fits = json.dumps(SHORT).encode()
    fits += b" " * (102400 - len(fits))
    assert daemon.request("POST", "/v1/completions", fits)[0] == 200


def test_chunked_over_the_limit(start):
    daemon = start("--max-body-size", "100K")
    piece = b"400\r\n" + b" " * 1024 + b"\r\n"
    head = post_bytes("/v1/completions", b"", "Transfer-Encoding: chunked", "Connection: close")
    answer = raw(daemon, head + piece * 101 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert daemon.get("/health")[0] == 200


def test_chunked_body(daemon):
    body = json.dumps(SHORT).encode()
    pieces = b"".join(b"%x\r\n%c\r\n" % (1, c) for c in body)
    head = post_bytes("/v1/completions", b"", "Transfer-Encoding: chunked", "Connection: close")
    assert raw(daemon, head + pieces + b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_large_body_off_the_loop(daemon):
    body = json.dumps(SHORT) + " " * 200000
    status, _, answer = daemon.request("POST", "/v1/completions", body)
    assert (status, json.loads(answer)["usage"]["completion_tokens"]) == (200, 8)
    assert daemon.request("POST", "/v1/completions", body + "x")[0] == 400


# ---- who may ask


def test_api_key(start):
    daemon = start("--api-key", "secret-key")
    for path in ("/health", "/version", "/metrics"):
        assert daemon.get(path)[0] == 200
    wrong = [None, "Bearer", "Bearer ", "Bearer secret-ke", "Bearer secret-keyy", "Basic secret-key"]
    for value in wrong:
        headers = {"Authorization": value} if value else {}
        answer = daemon.request("GET", "/v1/models", headers=headers)
        assert answer[0] == 401, value
        assert answer[1]["www-authenticate"] == "Bearer"
        assert error_of(answer[2])["code"] == "invalid_api_key"
        assert daemon.request("POST", "/v1/completions", SHORT, headers)[0] == 401
    good = {"Authorization": "Bearer secret-key"}
    assert daemon.request("GET", "/v1/models", headers=good)[0] == 200
    assert daemon.request("POST", "/v1/completions", SHORT, good)[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        "GET /health HTTP/1.1",
        "GET /health HTTP/1.1\r\nHost: a\r\nHost: b",
        "GET /health HTTP/1.1\r\nHost: a/b",
        "GET /health HTTP/1.1\r\nHost: a b",
        "GET /health HTTP/1.1\r\nHost: user@a",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: +2",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: -1",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length : 2",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "POST /tokenize HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked",
    ],
)
def test_doubtful_framing_is_refused_with_the_connection(daemon, head):
    smuggled = b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = raw(daemon, head.encode() + b"\r\n\r\n" + smuggled)
    assert answer.split(b" ", 2)[1] == b"400"
    assert b"HTTP/1.1 404" not in answer


def test_oversized_header(daemon):
    answer = raw(daemon, b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40000 + b"\r\n\r\n")
    assert answer[:13] in (b"", b"HTTP/1.1 431 ", b"HTTP/1.1 414 ")
    assert daemon.get("/health")[0] == 200


# ---- connections


def test_pipelined_requests(daemon):
    body = json.dumps(SHORT).encode()
    one = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    two = post_bytes("/v1/completions", body, f"Content-Length: {len(body)}")
    last = b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = raw(daemon, one + two + one + last)
    assert [p[:3] for p in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"200", b"404"]


def test_keep_alive_over_errors_and_streams(daemon):
    conn = daemon.connection()
    json_type = {"Content-Type": "application/json"}
    for _ in range(3):
        for body, want in ((SHORT, 200), ({**SHORT, "prompt": 1.5}, 400), ({**SHORT, "stream": True}, 200)):
            conn.request("POST", "/v1/completions", json.dumps(body), json_type)
            sock = conn.sock
            answer = conn.getresponse()
            assert answer.status == want
            text = answer.read()
            assert b"data: [DONE]" in text or "stream" not in body
            conn.request("GET", "/nowhere")
            assert conn.getresponse().read()
            assert conn.sock is sock
    conn.close()


def test_http_1_0(daemon):
    body = json.dumps({**SHORT, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answer = raw(daemon, head + body)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] == b"200"
    assert b"transfer-encoding" not in head.lower()
    assert rest.rstrip().endswith(b"data: [DONE]")


def test_stream_headers(daemon):
    conn, answer = open_stream(daemon, {**SHORT, "stream": True})
    headers = {k.lower(): v for k, v in answer.getheaders()}
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"]
    assert events(answer)[-1] == "[DONE]"
    conn.close()


def test_error_before_the_first_token_has_its_status(daemon):
    body = {**LONG, "prompt": [5] * 100000}
    answer = daemon.request("POST", "/v1/completions", body)
    assert answer[0] == 400
    assert answer[1]["content-type"] == "application/json"
    error_of(answer[2])


def test_slow_header_is_cut(daemon):
    with socket.create_connection((daemon.host, daemon.port), timeout=30) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        try:
            for _ in range(60):  # a byte each half second: never idle, never done
                s.settimeout(0.5)
                try:
                    assert s.recv(100) == b""
                    return
                except TimeoutError:
                    s.sendall(b"y")
        except (ConnectionResetError, BrokenPipeError):
            return
    pytest.fail("the connection was left open")


def cancelled(daemon):
    return daemon.metric('openmoed_requests_total{outcome="cancelled"}')


def nothing_runs(daemon):
    return all(daemon.metric(f"openmoed_requests_{s}") == 0 for s in ("running", "waiting"))


def test_leaving_a_stream_cancels(daemon):
    before, tokens = cancelled(daemon), daemon.metric("openmoed_generated_tokens_total")
    conn, answer = open_stream(daemon)
    answer.close()
    conn.close()
    eventually(lambda: cancelled(daemon) == before + 1 and nothing_runs(daemon))
    assert daemon.metric("openmoed_generated_tokens_total") - tokens < 900


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_leaving_while_waiting_cancels(daemon, how):
    before, tokens = cancelled(daemon), daemon.metric("openmoed_generated_tokens_total")
    body = json.dumps({**LONG, "stream": False}).encode()
    s = socket.create_connection((daemon.host, daemon.port))
    s.sendall(post_bytes("/v1/completions", body, f"Content-Length: {len(body)}"))
    eventually(lambda: daemon.metric("openmoed_requests_running") == 1)
    if how == "half":
        s.shutdown(socket.SHUT_WR)
    elif how == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        s.close()
    else:
        s.close()
    eventually(lambda: cancelled(daemon) == before + 1 and nothing_runs(daemon))
    assert daemon.metric("openmoed_generated_tokens_total") - tokens < 900
    s.close()


def test_leaving_the_queue_cancels(start):
    daemon = start("--max-num-seqs", "1")
    first = open_stream(daemon)
    second = socket.create_connection((daemon.host, daemon.port))
    body = json.dumps(LONG).encode()
    second.sendall(post_bytes("/v1/completions", body, f"Content-Length: {len(body)}"))
    eventually(lambda: daemon.metric("openmoed_requests_waiting") == 1)
    second.close()
    eventually(lambda: daemon.metric("openmoed_requests_waiting") == 0)
    assert events(first[1])[-1] == "[DONE]"
    assert cancelled(daemon) == 1
    assert daemon.metric('openmoed_requests_total{outcome="length"}') == 1


def test_leaving_while_a_large_body_is_parsed(daemon):
    body = json.dumps({**LONG, "max_tokens": 1}).encode() + b" " * 1000000
    for _ in range(20):
        with socket.create_connection((daemon.host, daemon.port)) as s:
            s.sendall(post_bytes("/v1/completions", body, f"Content-Length: {len(body)}"))
    eventually(lambda: nothing_runs(daemon))
    assert daemon.request("POST", "/v1/completions", SHORT)[0] == 200


def test_a_reader_that_stops_reading_is_given_up(start):
    """128 choices make far more than socket buffers hold; the daemon keeps a bounded rest."""
    daemon = start()
    body = json.dumps({**LONG, "prompt": [PROMPT] * 8, "n": 16, "logprobs": 5}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect((daemon.host, daemon.port))
        s.sendall(post_bytes("/v1/completions", body, f"Content-Length: {len(body)}"))
        eventually(lambda: cancelled(daemon) == 1 and nothing_runs(daemon), 120)
    assert daemon.metric("openmoed_generated_tokens_total") < 128 * 900


def test_a_reader_that_reads_is_not_given_up(daemon):
    """Prompts that end in one step: their log-probabilities are more than the bound at once."""
    body = {**LONG, "prompt": [5] * 900, "n": 10, "echo": True, "logprobs": 5, "max_tokens": 1}
    conn = daemon.connection(600)
    conn.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = events(conn.getresponse())
    assert sum(map(len, answer)) > 1 << 20
    assert answer[-1] == "[DONE]"
    conn.close()


def test_full_queue(start):
    daemon = start("--max-num-seqs", "1", "--max-queued-requests", "1")
    first = open_stream(daemon)
    results = []

    def ask():
        results.append(daemon.request("POST", "/v1/completions", SHORT))

    waiting = threading.Thread(target=ask)
    waiting.start()
    eventually(lambda: daemon.metric("openmoed_requests_waiting") == 1)
    status, headers, body = daemon.request("POST", "/v1/completions", SHORT)
    assert status == 429
    assert int(headers["retry-after"]) > 0
    error_of(body)
    first[0].close()
    first[1].close()
    waiting.join()
    assert results[0][0] == 200
    assert daemon.metric('openmoed_requests_total{outcome="rejected"}') == 1


def test_64_streams_at_once(daemon):
    body = {**SHORT, "max_tokens": 100, "stream": True, "stream_options": {"include_usage": True}}
    results = [None] * 64

    def ask(i):
        conn, answer = open_stream(daemon, {**body, "prompt": PROMPT + [i % 50 + 5]})
        got = events(answer)
        results[i] = (got[-1], json.loads(got[-2])["usage"]["completion_tokens"])
        conn.close()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(64)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [("[DONE]", 100)] * 64
    eventually(lambda: nothing_runs(daemon))


# ---- the end


def test_drain(start):
    daemon = start("--drain-timeout", "600")
    conn, answer = open_stream(daemon, {**LONG, "n": 2})
    daemon.signal(signal.SIGTERM)
    eventually(lambda: daemon.get("/health")[0] == 503)
    status, headers, body = daemon.request("POST", "/v1/completions", SHORT)
    assert status == 503
    assert int(headers["retry-after"]) > 0
    error_of(body)
    assert json.loads(daemon.get("/health")[2]) == {"status": "draining"}
    assert events(answer)[-1] == "[DONE]"
    assert daemon.wait() == 0
    conn.close()


def test_drain_with_nothing_to_do(start):
    daemon = start()
    idle = daemon.connection()
    idle.request("GET", "/health")
    idle.getresponse().read()
    daemon.signal(signal.SIGINT)
    assert daemon.wait() == 0
    idle.close()


@pytest.mark.parametrize("how", ["second signal", "timeout"])
def test_drain_cut_short(start, how):
    daemon = start("--drain-timeout", "0" if how == "timeout" else "600")
    conn, answer = open_stream(daemon, {**LONG, "n": 16})
    waiting = daemon.connection()
    waiting.request("POST", "/v1/completions", json.dumps({**LONG, "n": 16, "stream": False}),
                    {"Content-Type": "application/json"})
    eventually(lambda: daemon.metric("openmoed_requests_running") == 32)
    daemon.signal(signal.SIGTERM)
    if how == "second signal":
        eventually(lambda: daemon.get("/health")[0] == 503)
        daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert json.loads(events(answer)[-1])["error"]["type"] == "server_error"
    refused = waiting.getresponse()
    assert refused.status == 503
    error_of(refused.read())
    conn.close()
    waiting.close()
