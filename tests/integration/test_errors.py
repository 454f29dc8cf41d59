# SPDX-License-Identifier: Apache-2.0
"""Refusals as the `openai` client sees them: its exception classes, `param`, `code` and message."""

import json

import openai
import pytest

from client import MODEL, connect, eventually, user

HELLO = [user("Hello!")]
LONG = {"model": MODEL, "messages": HELLO, "n": 8, "stream": True,
        "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def client(daemon):
    with connect(daemon) as client:
        yield client


def refusal(kind, call, **asked):
    with pytest.raises(kind) as caught:
        call(**asked)
    error = caught.value
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.body["message"] and error.request_id
    return error


BAD = [
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": "Hello"}, "messages", "invalid_type"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]}, "messages[1].role", None),
    ({"messages": [{"role": "assistant", "content": "Hi"}, *HELLO]}, "messages", None),
    ({"messages": [{"role": "system", "content": "Hi"}]}, "messages[0].role", None),
    ({"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]},
     "messages[0].content[0].type", "invalid_value"),
    ({"messages": [user(5)]}, "messages[0].content", "invalid_type"),
    ({"messages": [user([])]}, "messages[0].content", "empty_array"),
    ({"temperature": 2.1}, "temperature", None),
    ({"temperature": -0.1}, "temperature", None),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"top_p": 1.5}, "top_p", None),
    ({"presence_penalty": 3}, "presence_penalty", None),
    ({"frequency_penalty": -3}, "frequency_penalty", None),
    ({"n": 0}, "n", None),
    ({"n": 1000}, "n", None),
    ({"n": 1.5}, "n", "invalid_type"),
    ({"n": True}, "n", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", None),
    ({"max_tokens": 10**6}, "messages", "context_length_exceeded"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", None),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", None),
    ({"seed": 0.5}, "seed", "invalid_type"),
    ({"seed": 2**64}, "seed", None),
    ({"stop": ["x"] * 17}, "stop", None),
    ({"stop": [""]}, "stop[0]", None),
    ({"stop": 5}, "stop", "invalid_type"),
    ({"stop": ["a", None]}, "stop[1]", "invalid_type"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1000000": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ({"logit_bias": [5]}, "logit_bias", "invalid_type"),
    ({"top_logprobs": 2}, "top_logprobs", None),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
    ({"logprobs": 5}, "logprobs", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", None),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "unsupported_parameter"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
    ({"extra_body": {"top_k": -2}}, "top_k", None),
    ({"extra_body": {"min_p": 1.1}}, "min_p", None),
    ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty", None),
    ({"extra_body": {"stop_token_ids": [-1]}}, "stop_token_ids[0]", None),
    ({"extra_body": {"min_tokens": -1}}, "min_tokens", None),
    ({"extra_body": {"min_tokens": 9}, "max_tokens": 5}, "min_tokens", None),
    ({"extra_body": {"temprature": 1}}, "temprature", "unknown_parameter"),
    ({"extra_body": {"prompt": "x"}}, "prompt", "unknown_parameter"),
]


@pytest.mark.parametrize("fields, param, code", BAD, ids=lambda v: str(v)[:50])
def test_bad_request(client, fields, param, code):
    asked = {"model": MODEL, "messages": HELLO, **fields}
    error = refusal(openai.BadRequestError, client.chat.completions.create, **asked)
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert error.code == code if code else error.code
    field = param.rpartition(".")[2].partition("[")[0]
    says = error.body["message"]
    assert field in says or field in ("role", "messages"), "the message names the field"


BAD_COMPLETIONS = [
    ({"prompt": []}, "prompt", "empty_array"),
    ({"prompt": 5}, "prompt", "invalid_type"),
    ({"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    ({"prompt": [5, "x"]}, "prompt[1]", "invalid_type"),
    ({"prompt": ["x", 5]}, "prompt[1]", "invalid_type"),
    ({"prompt": [[5], []]}, "prompt[1]", "empty_array"),
    ({"prompt": [10**6]}, "prompt[0]", None),
    ({"prompt": [-1]}, "prompt[0]", None),
    ({"prompt": "x", "logprobs": 6}, "logprobs", None),
    ({"prompt": "x", "logprobs": True}, "logprobs", "invalid_type"),
    ({"prompt": "x", "echo": 1}, "echo", "invalid_type"),
    ({"prompt": "x", "best_of": 4}, "best_of", None),
    ({"prompt": "x", "suffix": "y"}, "suffix", None),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens", None),
    ({"prompt": "word " * 5000}, "prompt", "context_length_exceeded"),
]


@pytest.mark.parametrize("fields, param, code", BAD_COMPLETIONS, ids=lambda v: str(v)[:50])
def test_bad_completion(client, fields, param, code):
    error = refusal(openai.BadRequestError, client.completions.create, model=MODEL, **fields)
    assert error.param == param
    assert error.code == code if code else error.code


def test_missing_fields(daemon):
    for path, body, param in (("chat/completions", {"model": MODEL}, "messages"),
                              ("completions", {"model": MODEL}, "prompt"),
                              ("chat/completions", {"messages": HELLO}, "model")):
        status, _, answer = daemon.request("POST", "/v1/" + path, body)
        error = json.loads(answer)["error"]
        assert (status, error["param"]) == (400, param)
        assert error["code"] == "missing_required_parameter"


def test_conversation_beyond_the_context(client):
    error = refusal(openai.BadRequestError, client.chat.completions.create, model=MODEL,
                    messages=[user("word " * 5000)])
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "1024" in error.message


def test_unknown_model(client):
    for call in (
        lambda: client.chat.completions.create(model="gpt-9", messages=HELLO),
        lambda: client.completions.create(model="gpt-9", prompt="x"),
        lambda: client.models.retrieve("gpt-9"),
    ):
        error = refusal(openai.NotFoundError, call)
        assert (error.code, error.param) == ("model_not_found", "model")
        assert "gpt-9" in error.message


def test_unsupported_path(client):
    refusal(openai.NotFoundError, client.embeddings.create, model=MODEL, input="x")


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL) == model


def test_api_key(start):
    daemon = start("--api-key", "open-sesame")
    with connect(daemon, key="wrong") as client:
        for call in (
            lambda: client.chat.completions.create(model=MODEL, messages=HELLO),
            client.models.list,
        ):
            error = refusal(openai.AuthenticationError, call)
            assert error.code == "invalid_api_key" and "open-sesame" not in str(error)
    with connect(daemon, key="open-sesame") as client:
        assert client.models.list().data
        assert client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1).choices
    assert "open-sesame" not in daemon.log


def test_full_queue(start):
    daemon = start("--max-num-seqs", "1", "--max-queued-requests", "8")
    with connect(daemon) as client:
        create = client.chat.completions.create
        running = create(**LONG)  # one of the 8 runs, 7 wait
        next(running)
        waiting = daemon.metric("openmoed_requests_waiting")
        assert 0 < waiting < 8
        error = refusal(openai.RateLimitError, create, model=MODEL, messages=HELLO, n=8)
        assert int(error.response.headers["retry-after"]) >= 1
        assert error.code == "queue_full" and error.type == "rate_limit_error"
        running.close()
        eventually(lambda: daemon.metric("openmoed_requests_running") == 0)
        assert create(model=MODEL, messages=HELLO, max_tokens=1).choices


def test_more_choices_than_the_queue_holds(start):
    daemon = start("--max-num-seqs", "1", "--max-queued-requests", "1")
    with connect(daemon) as client:
        create = client.chat.completions.create
        assert create(model=MODEL, messages=HELLO, max_tokens=1).choices
        error = refusal(openai.BadRequestError, create, model=MODEL, messages=HELLO, n=2)
        assert error.param == "n"


def test_body_too_large(start):
    daemon = start("--max-body-size", "10K")
    with connect(daemon) as client:
        create = client.chat.completions.create
        error = refusal(openai.APIStatusError, create, model=MODEL, messages=[user("x" * 10240)])
        assert error.status_code == 413 and "10240" in error.message
        assert create(model=MODEL, messages=HELLO, max_tokens=1).choices


def test_wrong_content_type(daemon):
    headers = {"Content-Type": "text/plain"}
    status, _, body = daemon.request("POST", "/v1/chat/completions", "{}", headers)
    assert status == 415 and "application/json" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("body", [
    b"", b"{", b"null", b"[]", b'"x"', b'{"model":"a","model":"b"}', b'{"a":1}{}', b'{"a":01}',
    b'{"a":1e999}', b"\xef\xbb\xbf{}", b'{"a":"\xff"}', b'{"a":"\x01"}', b'{"a":"\\ud800"}',
    b"[" * 100000, b'{"a":' * 100000,
])
def test_bad_json(daemon, body):
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        status, _, answer = daemon.request("POST", path, body, headers)
        error = json.loads(answer)["error"]
        assert (status, error["type"]) == (400, "invalid_request_error")
        assert error["message"]


def test_a_refused_request_leaves_nothing_behind(client, daemon):
    refusal(openai.BadRequestError, client.chat.completions.create, model=MODEL, messages=HELLO,
            temperature=9)
    assert daemon.metric("openmoed_requests_running") == 0
    assert daemon.metric("openmoed_requests_waiting") == 0
    assert client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1).choices
