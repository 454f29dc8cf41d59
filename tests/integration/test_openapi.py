# SPDX-License-Identifier: Apache-2.0
"""/openapi.json against the daemon: its paths and methods, and real exchanges.

Every body that the daemon takes must fit its schema in the document, and every answer must have a
status, a content type, headers and a body that the document tells, errors and events included.
(What fields there are is held against the code by tests/unit/test_openapi.c.)
"""

import hashlib
import json
import pathlib
import re

import jsonschema
import pytest

from client import MODEL, user

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHAT, TEXT, REPLY = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO = {"model": MODEL, "messages": [user("Hello!")], "max_tokens": 6, "temperature": 0}
ONCE = {"model": MODEL, "prompt": "Once upon", "max_tokens": 4, "temperature": 0}
JSON = "application/json"


@pytest.fixture(scope="module")
def document(daemon):
    status, headers, body = daemon.get("/openapi.json")
    assert (status, headers["content-type"]) == (200, JSON)
    assert body.decode() == (ROOT / "server" / "openapi.json").read_text()
    return json.loads(body)


def resolved(document, node):
    while "$ref" in node:
        path = node["$ref"].removeprefix("#/").split("/")
        node = document
        for name in path:
            node = node[name]
    return node


class Contract:
    """What the document says of one operation."""

    def __init__(self, document, method, path):
        self.document, self.method, self.path = document, method, path
        for known, operations in document["paths"].items():
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", known), path.split("?")[0]):
                self.operation = operations[method.lower()]
                return
        raise AssertionError(f"{path} is not in the document")

    def validate(self, schema, value):
        whole = {**schema, "components": self.document["components"]}
        jsonschema.Draft202012Validator(whole).validate(value)

    def takes(self, body):
        schema = self.operation["requestBody"]["content"][JSON]["schema"]
        try:
            self.validate(schema, body)
        except jsonschema.ValidationError:
            return False
        return True

    def check_headers(self, told, headers):
        for name, header in told.get("headers", {}).items():
            header = resolved(self.document, header)
            value = headers.get(name.lower())
            assert value is not None or not header.get("required"), (name, headers)
            if value is not None:
                schema = header["schema"]
                self.validate(schema, int(value) if schema.get("type") == "integer" else value)

    def check_answer(self, status, headers, body):
        assert str(status) in self.operation["responses"], (status, body)
        told = resolved(self.document, self.operation["responses"][str(status)])
        self.check_headers(told, headers)
        kind = headers.get("content-type", "").split(";")[0]
        assert kind in told.get("content", {"": None}), (kind, body)
        if kind == JSON:
            self.validate(told["content"][kind]["schema"], json.loads(body))
        if kind == "text/event-stream":
            self.check_events(told["content"][kind], body.decode())

    def check_events(self, told, text):
        """Chats and completions end with [DONE]; the events of a response have names."""
        *events, end = text.split("\n\n")
        assert end == ""
        if not self.path.endswith("/responses"):
            assert events.pop() == "data: [DONE]"
        assert events
        for event in events:
            *name, data = event.split("\n")
            assert data.startswith("data: ")
            data = json.loads(data.removeprefix("data: "))
            assert name == ([f"event: {data['type']}"] if "type" in data else [])
            self.validate(told["x-event-schema"], data)


@pytest.fixture(scope="module")
def exchange(daemon, document):
    """exchange(method, path, body): the status, after both sides were held against the document."""

    def run(method, path, body=None, headers=None, on=daemon):
        contract = Contract(document, method, path)
        status, got, answer = on.request(method, path, body, headers)
        if status == 200 and body is not None:
            assert contract.takes(body), body
        contract.check_answer(status, got, answer)
        return status

    return run


# ---- the document itself


def test_schemas_are_schemas(document):
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_paths_are_the_routes(document):
    """The table of routes in the source, where * is a name and what follows a last slash is not written out."""
    source = (ROOT / "server" / "routes.c").read_text()
    routes = set()
    for method, path in re.findall(r'^    {"([A-Z]+)", "(/[^"]*)", (?:true|false),', source, re.M):
        routes.add((method, path))
    told = {
        (method.upper(), re.sub(r"{\w+}", "*", re.sub(r"{\w+}$", "", path)))
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert routes == told and len(routes) > 9


def test_methods(daemon, document):
    """What the document does not have is 405 and says what there is."""
    for path, operations in document["paths"].items():
        path = re.sub(r"{\w+}", "x", path)
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            status, headers, _ = daemon.request(method, path)
            assert (status == 405) == (method.lower() not in operations), (method, path)
            if status == 405:
                assert {m.upper() for m in operations} <= set(headers["allow"].split(", "))


# ---- exchanges that succeed

EVERYTHING = {
    "n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True, "return_routing": True, "prompt_logprobs": 1,
    "seed": 3, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "presence_penalty": 0.1, "frequency_penalty": 0.1,
    "repetition_penalty": 1.1, "logit_bias": {"5": -1.5}, "stop": ["zzz"], "stop_token_ids": [7], "min_tokens": 1,
    "bad_words": ["never"], "priority": 1, "timeout": 60, "cache_salt": "s", "user": "u", "request_id": "r-1",
    "truncate_prompt_tokens": -1, "truncation_side": "left", "metadata": {"a": "b"}, "store": False,
    "service_tier": "auto", "skip_special_tokens": True, "include_stop_str_in_output": True,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CHATS = [
    {},
    EVERYTHING,
    {"messages": [{"role": "system", "content": "Be brief."}, user([{"type": "text", "text": "Hi"}])]},
    {"messages": [user("a"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, user("b")]},
    {"messages": [user("a"), {"role": "assistant", "content": "Well,"}], "continue_final_message": True, "echo": True},
    {"response_format": {"type": "text"}, "stop": None, "logprobs": False},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"guided_regex": "[ab]{3}"},
    {"max_tokens": None, "max_completion_tokens": 2, "ignore_eos": True, "return_tokens_as_token_ids": True,
     "logprobs": True},
    {"allowed_token_ids": [9, 10], "use_beam_search": False, "length_penalty": 1.0, "reasoning_effort": "none"},
    {"tools": [TOOL], "tool_choice": "none"},
    {"tools": [TOOL], "tool_choice": "required", "max_tokens": 40, "logprobs": True},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}, "max_tokens": 40},
    {"tools": [TOOL], "messages": [
        user("a"), {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "seen"}]},
]
TEXTS = [
    {},
    {**{k: v for k, v in EVERYTHING.items() if k not in ("metadata", "store", "service_tier", "top_logprobs")},
     "logprobs": 2, "echo": True},
    {"prompt": ["a", "b"], "n": 2, "best_of": 2},
    {"prompt": [[3, 4], [5]], "logprobs": 0, "return_token_ids": True},
    {"prompt": [3, 4, 5], "echo": True, "logprobs": 5, "max_tokens": 0},
    {"add_special_tokens": False, "suffix": ""},
    {"response_format": {"type": "json_object"}},
]


def streamed(body, **options):
    body = {**body, "stream": True, **options}
    body.pop("prompt_logprobs", None)
    return body


@pytest.mark.parametrize("more", CHATS)
def test_chats(exchange, more):
    body = {**HELLO, **more}
    assert exchange("POST", CHAT, body) == 200
    assert exchange("POST", CHAT, streamed(body)) == 200
    usage = {"include_usage": True, "continuous_usage_stats": True}
    assert exchange("POST", CHAT, streamed(body, stream_options=usage)) == 200


@pytest.mark.parametrize("more", TEXTS)
def test_completions(exchange, more):
    body = {**ONCE, **more}
    assert exchange("POST", TEXT, body) == 200
    assert exchange("POST", TEXT, streamed(body)) == 200
    assert exchange("POST", TEXT, streamed(body, stream_options={"include_usage": True})) == 200


RESPONSES = [
    {},
    {"input": [user("Hello!")], "instructions": "Be brief.", "store": False, "top_logprobs": 1},
    {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
     "include": ["message.output_text.logprobs"], "metadata": {"a": "b"}, "truncation": "auto", "user": "u"},
    {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "boolean"}}}, "max_output_tokens": 20},
    {"tools": [{"type": "function", "name": "look"}], "tool_choice": "required", "max_output_tokens": 40},
    {"tools": [{"type": "function", "name": "look"}], "input": [
        user("a"), {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "seen"}]},
    {"temperature": None, "top_p": 0.5, "seed": 1, "stop": ["zzz"], "background": False, "reasoning": {}},
    {"reasoning": {"effort": "none", "summary": None}},
    {"reasoning": {"effort": None, "generate_summary": None}},
]


@pytest.mark.parametrize("more", RESPONSES)
def test_responses(exchange, more):
    body = {"model": MODEL, "input": "Hello!", "max_output_tokens": 6, "temperature": 0, **more}
    assert exchange("POST", REPLY, body) == 200
    assert exchange("POST", REPLY, {**body, "stream": True}) == 200


def test_kept_responses(daemon, exchange):
    body = {"model": MODEL, "input": "Hello!", "max_output_tokens": 4}
    first = json.loads(daemon.request("POST", REPLY, body)[2])["id"]
    assert exchange("POST", REPLY, {**body, "previous_response_id": first}) == 200
    assert exchange("GET", f"{REPLY}/{first}") == 200
    assert exchange("GET", f"{REPLY}/{first}/input_items?limit=1&order=asc") == 200
    assert exchange("GET", f"{REPLY}/{first}/input_items?limit=0") == 400
    assert exchange("DELETE", f"{REPLY}/{first}") == 200
    assert exchange("DELETE", f"{REPLY}/{first}") == 404
    assert exchange("GET", f"{REPLY}/{first}") == 404
    assert exchange("POST", REPLY, {**body, "previous_response_id": first}) == 400


def test_small_endpoints(exchange):
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/health", "/metrics", "/version", "/openapi.json", "/"):
        assert exchange("GET", path) == 200
    assert exchange("POST", "/tokenize", {"prompt": "some text", "add_special_tokens": False}) == 200
    assert exchange("POST", "/tokenize", {"model": MODEL, "prompt": "x", "return_token_strs": True}) == 200
    assert exchange("POST", "/detokenize", {"model": MODEL, "tokens": [3, 4]}) == 200


def test_files_of_the_page(daemon, exchange):
    page = daemon.get("/")[2].decode()
    files = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
    assert files
    for path in files:
        assert exchange("GET", path) == 200
        etag = daemon.get(path)[1]["etag"]
        assert exchange("GET", path, headers={"If-None-Match": etag}) == 304


# ---- bodies that fail, by the schema and by the daemon alike

BAD = [
    (CHAT, {"messages": []}), (CHAT, {"messages": "hi"}), (CHAT, {"messages": [{"content": "x"}]}),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}), (CHAT, {"messages": [user("x") | {"colour": "red"}]}),
    (CHAT, {"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]}), (CHAT, {"messages": [user(5)]}),
    (CHAT, {"messages": [user([])]}), (CHAT, {"messages": [user("x") | {"audio": {"id": "x"}}]}),
    (CHAT, {"temperature": 2.1}), (CHAT, {"temperature": "hot"}), (CHAT, {"top_p": -0.1}), (CHAT, {"n": 0}),
    (CHAT, {"n": 17}), (CHAT, {"n": 1.5}), (CHAT, {"max_tokens": 0}), (CHAT, {"top_logprobs": 21}),
    (CHAT, {"logprobs": 1}), (CHAT, {"stop": ["a"] * 17}), (CHAT, {"stop": ""}), (CHAT, {"logit_bias": {"a": 1}}),
    (CHAT, {"logit_bias": {"1": 101}}), (CHAT, {"seed": 1.5}), (CHAT, {"stream": "yes"}),
    (CHAT, {"stream": True, "stream_options": {"usage": True}}), (CHAT, {"metadata": {"a": 1}}),
    (CHAT, {"metadata": {str(i): "" for i in range(17)}}), (CHAT, {"metadata": {"a" * 65: ""}}),
    (CHAT, {"service_tier": "best"}), (CHAT, {"functions": [{"name": "f"}]}), (CHAT, {"modalities": ["audio"]}),
    (CHAT, {"use_beam_search": True}), (CHAT, {"prediction": {"type": "content"}}), (CHAT, {"no_such_field": 1}),
    (CHAT, {"bad_words": [""]}), (CHAT, {"allowed_token_ids": []}), (CHAT, {"truncate_prompt_tokens": 0}),
    (CHAT, {"truncation_side": "top"}), (CHAT, {"prompt_logprobs": 21}), (CHAT, {"request_id": "a b"}),
    (CHAT, {"priority": 1e7}), (CHAT, {"cache_salt": ""}), (CHAT, {"response_format": {"type": "xml"}}),
    (CHAT, {"tools": [{"type": "robot"}]}), (CHAT, {"tool_choice": "always", "tools": [TOOL]}),
    (TEXT, {"prompt": None}), (TEXT, {"prompt": []}), (TEXT, {"prompt": {}}), (TEXT, {"prompt": [[]]}),
    (TEXT, {"prompt": [-1]}), (TEXT, {"logprobs": 6}), (TEXT, {"logprobs": True}), (TEXT, {"best_of": 17}),
    (REPLY, {"input": 5}), (REPLY, {"input": [{"role": "robot", "content": "x"}]}), (REPLY, {"truncation": "left"}),
    (REPLY, {"background": True}), (REPLY, {"conversation": "x"}), (REPLY, {"messages": []}), (REPLY, {"top_p": 2}),
    (REPLY, {"text": {"format": {"type": "xml"}}}), (REPLY, {"tools": [{"type": "web_search"}]}),
    (REPLY, {"include": ["all"]}), (REPLY, {"max_output_tokens": 0}), (REPLY, {"input": [{"type": "reasoning"}]}),
    (TEXT, {"suffix": "x"}), (TEXT, {"messages": []}), (TEXT, {"metadata": {}}), (TEXT, {"max_tokens": -1}),
]


@pytest.mark.parametrize("path, more", BAD)
def test_bad_bodies(document, exchange, path, more):
    body = {**{CHAT: HELLO, TEXT: ONCE, REPLY: {"model": MODEL, "input": "x"}}[path], **more}
    assert not Contract(document, "POST", path).takes(body)
    assert exchange("POST", path, body) == 400


def test_bodies_that_only_the_daemon_can_refuse(exchange):
    """Fields that do not go together, and what depends on the model."""
    for more in ({"top_logprobs": 1}, {"stream_options": {}}, {"max_tokens": 10**6}, {"add_generation_prompt": False}):
        assert exchange("POST", CHAT, {**HELLO, **more}) == 400
    assert exchange("POST", TEXT, {**ONCE, "best_of": 2}) == 400
    assert exchange("POST", TEXT, {**ONCE, "prompt": [10**7]}) == 400
    assert exchange("POST", CHAT, {**HELLO, "model": "another"}) == 404
    assert exchange("GET", "/v1/models/another") == 404
    assert exchange("GET", "/static/another") == 404
    assert exchange("POST", "/tokenize", {"prompt": 5}) == 400
    assert exchange("POST", "/detokenize", {"tokens": [-1]}) == 400


# ---- other failures


def test_failures_of_the_message(exchange):
    as_json = {"Content-Type": JSON}
    assert exchange("POST", CHAT, "{", as_json) == 400
    assert exchange("POST", CHAT, "[]", as_json) == 400
    assert exchange("POST", CHAT, json.dumps(HELLO), {"Content-Type": "text/plain"}) == 415
    assert exchange("GET", "/health", headers={"X-Long": "x" * 20000}) == 431


def test_failures_of_the_server(start, exchange):
    small = start("--max-body-size", "1024", "--api-key", "secret")
    key = {"Authorization": "Bearer secret"}
    assert exchange("GET", "/v1/models", on=small) == 401
    assert exchange("POST", CHAT, HELLO, on=small) == 401
    assert exchange("POST", CHAT, HELLO, key, on=small) == 200
    assert exchange("POST", CHAT, {**HELLO, "user": "u" * 1024}, key, on=small) == 413
    assert exchange("POST", CHAT, {**HELLO, "timeout": 1e-6}, key, on=small) == 408


def test_limits_of_a_key(start, exchange, tmp_path):
    file = tmp_path / "keys.json"
    digest = hashlib.sha256(b"secret").hexdigest()
    file.write_text(json.dumps({"tenants": [{"name": "t", "keys": ["sha256:" + digest], "requests_per_minute": 2}]}))
    limited = start("--api-key-file", str(file))
    key = {"Authorization": "Bearer secret"}
    assert [exchange("POST", CHAT, HELLO, key, on=limited) for _ in range(3)] == [200, 200, 429]
