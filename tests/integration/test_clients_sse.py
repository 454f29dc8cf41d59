# SPDX-License-Identifier: Apache-2.0
"""Event streams byte by byte, as `httpx` and curl receive them: what the WHATWG's server-sent events allow, and of that
only what every reader of them understands: one `data` line and an empty line for each event, in UTF-8."""

import json
import re
import signal
import subprocess

import httpx
import pytest

from client import MODEL, eventually, user

# Everything that may end a line somewhere, what looks like an event, and characters of one to four bytes.
ODD = "one\ntwo\r\nthree\rfour\x0bfive\x85six\u2028seven\u2029\n\ndata: [DONE]\n\n: é ß 漢 😀 \ufeff \\n \"end\""
CHAT = {"model": MODEL, "messages": [user("Hello!")], "max_tokens": 24, "temperature": 1, "seed": 7, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True}
TEXT = {"model": MODEL, "prompt": ODD, "max_tokens": 8, "temperature": 0, "stream": True, "echo": True, "n": 2,
        "ignore_eos": True}
EVENT = re.compile(rb"(?:event: ([a-z_.]+)\n)?data: ([^\r\n]+)\n\n")


class Reader:
    """Events (type, data) as the specification's parser dispatches them."""

    def __init__(self):
        self.events, self._type, self._data = [], "", []
        self._line, self._after_cr, self._begun = b"", False, False

    def feed(self, piece):
        for byte in piece:
            if byte == 10 and self._after_cr:
                self._after_cr = False
                continue
            self._after_cr = byte == 13
            if byte in (10, 13):
                self._end_of_line(self._line.decode())  # strict: bad UTF-8 is an error
                self._line = b""
            else:
                self._line += bytes([byte])

    def _end_of_line(self, line):
        if not self._begun:
            assert not line.startswith("\ufeff"), "a byte order mark"
            self._begun = True
        if not line:
            if self._data:
                self.events.append((self._type, "\n".join(self._data)))
            self._type, self._data = "", []
            return
        field, _, value = line.partition(":")
        assert field in ("data", "event", "id", "retry", ""), f"unknown field {field!r}"
        if field == "data":
            self._data.append(value.removeprefix(" "))
        if field == "event":
            self._type = value.removeprefix(" ")

    def end(self):
        assert not self._line and not self._data, "the stream ends within an event"
        return self.events


def typed(body):
    """The events of a whole stream: by the strict form, which a parser of the specification reads the same."""
    strict = list(EVENT.finditer(body))
    assert b"".join(one.group(0) for one in strict) == body, "bytes that belong to no event"
    reader = Reader()
    reader.feed(body)
    assert reader.end() == [((one.group(1) or b"").decode(), one.group(2).decode()) for one in strict]
    return reader.events


def read(body):
    """The data of events without a type."""
    events = typed(body)
    assert {kind for kind, _ in events} == {""}
    return [data for _, data in events]


def chunks(events):
    assert events[-1] == "[DONE]" and events.count("[DONE]") == 1
    return [json.loads(one) for one in events[:-1]]


@pytest.fixture
def http(daemon):
    with httpx.Client(base_url=daemon.url, timeout=60) as client:
        yield client


def test_headers_and_framing(http):
    with http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] == "text/event-stream"
        assert "no-cache" in answer.headers["cache-control"]
        assert answer.headers["transfer-encoding"] == "chunked" and "content-length" not in answer.headers
        pieces = list(answer.iter_raw())
    found = chunks(read(b"".join(pieces)))
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found[-1]["usage"]["completion_tokens"] == 24 and found[-1]["choices"] == []
    whole = http.post("/v1/chat/completions", json={**CHAT, "stream": False, "stream_options": None}).json()
    text = "".join(c["delta"].get("content") or "" for one in found for c in one["choices"])
    assert text == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize("tool", ["httpx", "curl"])
def test_text_that_looks_like_framing(daemon, http, tool):
    if tool == "httpx":
        with http.stream("POST", "/v1/completions", json=TEXT) as answer:
            body = b"".join(answer.iter_raw())
    else:
        command = ["curl", "-sSN", "--fail", daemon.url + "/v1/completions", "-H", "Content-Type: application/json",
                   "-d", json.dumps(TEXT)]
        body = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    texts = ["", ""]
    for one in chunks(read(body)):
        for choice in one["choices"]:
            texts[choice["index"]] += choice["text"]
    whole = http.post("/v1/completions", json={**TEXT, "stream": False}).json()
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert all(text.startswith(ODD) and len(text) > len(ODD) for text in texts)


def test_typed_events(http):
    asked = {"model": MODEL, "input": ODD, "max_output_tokens": 16, "instructions": ODD, "stream": True}
    with http.stream("POST", "/v1/responses", json=asked) as answer:
        events = typed(b"".join(answer.iter_raw()))
    found = [json.loads(data) for _, data in events]
    assert [one["type"] for one in found] == [kind for kind, _ in events]
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    assert found[0]["type"] == "response.created" and found[0]["response"]["instructions"] == ODD
    assert found[-1]["type"] in ("response.completed", "response.incomplete")


def test_one_connection_for_many_streams(http):
    ports = set()
    for _ in range(3):
        with http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
            chunks(read(answer.read()))
    refused = http.post("/v1/chat/completions", json={**CHAT, "temperature": 9})
    ports.add(refused.extensions["network_stream"].get_extra_info("client_addr")[1])
    assert refused.status_code == 400 and refused.headers["content-type"].startswith("application/json")
    assert len(ports) == 1


def test_an_error_within_a_stream_is_an_event(start):
    daemon = start("--drain-timeout", "0")
    asked = {**CHAT, "max_tokens": 900, "n": 16}
    with httpx.Client(base_url=daemon.url, timeout=60) as http:
        with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            pieces = answer.iter_raw()
            body = next(pieces)
            daemon.signal(signal.SIGTERM)
            body += b"".join(pieces)
    events = read(body)
    error = json.loads(events[-1])["error"]
    assert error["type"] == "server_error" and "shut down" in error["message"]
    assert "[DONE]" not in events
    eventually(lambda: daemon.process.poll() is not None)
