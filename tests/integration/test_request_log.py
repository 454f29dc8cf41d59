# SPDX-License-Identifier: Apache-2.0
"""The line about each request: its fields in both formats, what never stands in it, and x-request-id."""

import json
import re
import shlex

import pytest

from client import eventually
from listeners import SHORT
from test_http import LONG, open_stream, raw
from test_tenants import tenant

SECRET = "the quick brown fox"


def parse_text(line):
    found = re.fullmatch(r"\S+Z (\w+) request (.*)", line)
    return {"level": found[1].lower(), **dict(word.split("=", 1) for word in shlex.split(found[2]))}


def lines(daemon, json_format=False):
    """Every request's line so far, as a dictionary."""
    if json_format:
        every = [json.loads(line) for line in daemon.log.splitlines()]
        return [one for one in every if one["message"] == "request"]
    return [parse_text(line) for line in daemon.log.splitlines() if " request method=" in line]


def line_of(daemon, request_id, json_format=False):
    found = []

    def look():
        found[:] = [one for one in lines(daemon, json_format) if one["request_id"] == request_id]
        return found

    eventually(look)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("json_format", [False, True])
def test_fields(start, tmp_path, json_format):
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"tenants": [tenant("acme", "sesame")]}))
    keys.chmod(0o600)
    daemon = start("--api-key-file", str(keys), "--log-format", "json" if json_format else "text",
                   "--log-level", "debug")
    key = {"Authorization": "Bearer sesame"}
    chat = {"model": daemon.model, "messages": [{"role": "user", "content": SECRET * 20}],
            "max_tokens": 4, "ignore_eos": True}
    number = (lambda x: x) if json_format else float

    for turn in (1, 2):
        body = {**chat, "stream": turn == 2, "stream_options": {"include_usage": True}}
        if turn == 1:
            del body["stream_options"]
        headers = {**key, "x-request-id": f"turn.{turn}"}
        status, got, text = daemon.request("POST", "/v1/chat/completions?secret=sesame", body, headers)
        assert (status, got["x-request-id"]) == (200, f"turn.{turn}")
        answer = json.loads(text if turn == 1 else text.split(b"data: ")[-2])
        line = line_of(daemon, f"turn.{turn}", json_format)
        usage = answer["usage"]
        assert (line["level"], line["method"], line["path"]) == ("info", "POST", "/v1/chat/completions")
        assert number(line["status"]) == 200 and line["tenant"] == "acme"
        assert number(line["prompt_tokens"]) == usage["prompt_tokens"]
        assert number(line["completion_tokens"]) == usage["completion_tokens"] == 4
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert number(line["cached_tokens"]) == cached and (cached > 0) == (turn == 2)
        assert 0 < number(line["ttft"]) <= number(line["seconds"])
        assert (line["finish"], line["id"]) == ("length", answer["id"])
        assert re.fullmatch(r"127\.0\.0\.1:\d+", line["peer"])

    refusal = daemon.request("POST", "/v1/chat/completions", chat, {"x-request-id": "no-key"})
    assert refusal[0] == 401
    line = line_of(daemon, "no-key", json_format)
    assert number(line["status"]) == 401
    assert not set(line) & {"tenant", "prompt_tokens", "ttft", "finish", "id"}

    daemon.request("GET", "/health", headers={"x-request-id": "probe"})
    assert line_of(daemon, "probe", json_format)["level"] == "debug"
    daemon.request("PUT", "/health", headers={"x-request-id": "wrong"})
    assert line_of(daemon, "wrong", json_format)["level"] == "info"
    assert SECRET not in daemon.log and "sesame" not in daemon.log


def test_cached_tokens_of_many_choices_count_once(start):
    daemon = start()
    prompt = list(range(5, 200))
    body = {"model": daemon.model, "prompt": [prompt, prompt[:100]], "n": 3, "max_tokens": 2, "ignore_eos": True}
    for i in (1, 2):
        answer = daemon.request("POST", "/v1/completions", body, {"x-request-id": f"n{i}"})
        usage = json.loads(answer[2])["usage"]
        line = line_of(daemon, f"n{i}")
        assert int(line["cached_tokens"]) == usage["prompt_tokens_details"]["cached_tokens"]
    assert int(line["cached_tokens"]) > 200


def test_a_client_that_left(start):
    daemon = start()
    conn, answer = open_stream(daemon, LONG)
    request_id = dict((k.lower(), v) for k, v in answer.getheaders())["x-request-id"]
    answer.close()
    conn.close()
    line = line_of(daemon, request_id)
    assert (line["status"], line["finish"]) == ("200", "cancelled")
    conn = daemon.connection()
    conn.request("POST", "/v1/completions", json.dumps({**LONG, "stream": False}),
                 {"Content-Type": "application/json", "x-request-id": "silent"})
    eventually(lambda: daemon.metric("openmoed_requests_running") == 1)
    conn.close()
    line = line_of(daemon, "silent")
    assert "status" not in line and line["finish"] == "cancelled"


def test_off(start):
    daemon = start("--log-requests", "off")
    before = daemon.log
    daemon.request("POST", "/v1/completions", SHORT)
    daemon.get("/nowhere")
    assert daemon.log == before


def test_lines_cannot_be_forged(start):
    daemon = start()
    path = "/x%0A2026-01-01T00:00:00.000Z%20INFO%20request%20method=FORGED%22%20status=200%1b[31m%ff"
    answer = daemon.request("GET", path, headers={"x-request-id": "forger"})
    assert answer[0] == 404
    line = line_of(daemon, "forger")
    assert line["status"] == "404"
    assert all("FORGED" in one["path"] for one in lines(daemon) if "FORGED" in str(one))
    assert [one for one in daemon.log.splitlines() if one.startswith("2026-01-01T00:00:00.000Z")] == []
    assert "\x1b" not in daemon.log
    raw(daemon, b"GET /" + b"y" * 5000 + b" HTTP/1.1\r\nHost: a\r\nx-request-id: long\r\nConnection: close\r\n\r\n")
    assert len(line_of(daemon, "long")["path"]) < 300


# ---- x-request-id


@pytest.mark.parametrize("value", ["a", "550e8400-e29b-41d4-a716-446655440000", "a.b_c:d-e", "x" * 128])
def test_a_sane_request_id_is_taken(daemon, value):
    for method, path in (("GET", "/health"), ("GET", "/nowhere"), ("DELETE", "/v1/models")):
        assert daemon.request(method, path, headers={"X-Request-Id": value})[1]["x-request-id"] == value
    conn, answer = open_stream(daemon, {**SHORT, "stream": True})
    assert dict((k.lower(), v) for k, v in answer.getheaders())["x-request-id"].startswith("req-")
    conn.close()


@pytest.mark.parametrize("value", ["", "x" * 129, "a b", 'a"b', "a=b", "caf\xe9", "a,b"])
def test_any_other_is_replaced(daemon, value):
    got = daemon.request("GET", "/health", headers={"X-Request-Id": value})[1]["x-request-id"]
    assert re.fullmatch(r"req-[0-9a-f]{16}", got)


def test_two_request_ids_are_none(daemon):
    answer = raw(daemon, b"GET /health HTTP/1.1\r\nHost: a\r\nx-request-id: a\r\nx-request-id: b\r\n"
                         b"Connection: close\r\n\r\n")
    assert b"x-request-id: req-" in answer.lower()
