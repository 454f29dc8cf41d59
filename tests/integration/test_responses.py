# SPDX-License-Identifier: Apache-2.0
"""/v1/responses with the real `openai` client: text in, text out, events, earlier responses, tools, forms, refusals.

What the model can do does not matter here, only what it is told and the shape of what comes back: a response must say
what the chat that means the same says.
"""

import json
from typing import Annotated

import openai
import pydantic
import pytest

from client import MODEL, connect, extra, user

ASK = {"model": MODEL, "input": "Hello! What can you do?", "temperature": 0, "max_output_tokens": 40}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
ADD = {"type": "function", "name": "Add", "strict": True, "parameters": {
    "type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"], "additionalProperties": False}}
SAY = {"type": "function", "name": "Say", "parameters": {
    "type": "object", "properties": {"loud": {"type": "boolean"}}, "required": ["loud"]}}


@pytest.fixture
def client(daemon):
    with connect(daemon) as one:
        yield one


@pytest.fixture
def ask(client):
    return client.responses.create


def said(client, messages, **more):
    """What the chat that means the same says."""
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=40, **more)
    return answer.choices[0].message.content, answer.usage


# ---- one response


def test_whole(client, ask):
    answer = ask(**ASK)
    text, usage = said(client, [user(ASK["input"])])
    assert answer.output_text == text and answer.status == "completed" and answer.id.startswith("resp_")
    assert [(i.type, i.role, i.status) for i in answer.output] == [("message", "assistant", "completed")]
    assert answer.usage.input_tokens == usage.prompt_tokens
    assert answer.usage.output_tokens == usage.completion_tokens
    assert answer.usage.total_tokens == usage.total_tokens
    assert answer.error is None and answer.incomplete_details is None and answer.previous_response_id is None
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0, 1, 40)
    assert (answer.tools, answer.tool_choice, answer.truncation, answer.metadata) == ([], "auto", "disabled", {})
    assert answer.text.format.type == "text" and answer.parallel_tool_calls is True and answer.background is False


def test_echoes(ask):
    answer = ask(**ASK, instructions="Be brief.", metadata={"a": "b"}, user="u", top_p=0.5, truncation="auto",
                 parallel_tool_calls=False, safety_identifier="s", prompt_cache_key="k", service_tier="auto")
    assert answer.instructions == "Be brief." and answer.metadata == {"a": "b"} and answer.user == "u"
    assert answer.top_p == 0.5 and answer.truncation == "auto" and answer.parallel_tool_calls is False
    assert answer.safety_identifier == "s" and answer.prompt_cache_key == "k" and answer.service_tier == "default"


def test_inputs_mean_what_the_chat_means(client, ask):
    history = [{"role": "system", "content": "You are terse."}, user("My cat is called Biscuit."),
               {"role": "assistant", "content": "A lovely name."}, user("What is the name of my cat?")]
    text, usage = said(client, history)
    parts = [{"type": "message", "role": m["role"], "content": [
        {"type": "output_text" if m["role"] == "assistant" else "input_text", "text": m["content"]}]} for m in history]
    for given in ({"input": history}, {"input": parts}, {"input": history[1:], "instructions": "You are terse."},
                  {"input": [{**history[0], "role": "developer"}, *history[1:]]}):
        answer = ask(**{**ASK, **given})
        assert (answer.output_text, answer.usage.input_tokens) == (text, usage.prompt_tokens)


def test_length(ask):
    answer = ask(**{**ASK, "max_output_tokens": 2})
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete" and answer.usage.output_tokens == 2
    assert ask(**ASK).output_text.startswith(answer.output_text)


def test_logprobs(client, ask):
    answer = ask(**ASK, top_logprobs=2, include=["message.output_text.logprobs"])
    tokens = answer.output[0].content[0].logprobs
    assert len(tokens) == answer.usage.output_tokens - 1  # the end token has no text
    assert "".join(t.token for t in tokens).strip() == answer.output_text
    assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob >= t.logprob for t in tokens)
    sent = [e for e in ask(**ASK, top_logprobs=2, stream=True) if e.type == "response.output_text.delta"]
    assert [t.token for e in sent for t in e.logprobs] == [t.token for t in tokens]
    assert ask(**ASK).output[0].content[0].logprobs == []


def test_sampling_fields(ask):
    more = {"seed": 4, "top_k": 30}
    one = ask(**{**ASK, "temperature": 1.5}, extra_body=more).output_text
    assert ask(**{**ASK, "temperature": 1.5}, extra_body=more).output_text == one


# ---- events


ONE_MESSAGE = ["response.created", "response.in_progress", "response.output_item.added",
               "response.content_part.added", "response.output_text.delta", "response.output_text.done",
               "response.content_part.done", "response.output_item.done", "response.completed"]


def kinds(events):
    """Their types, deltas in a row as one."""
    out = []
    for event in events:
        if not (out and out[-1] == event.type and event.type.endswith("delta")):
            out.append(event.type)
    return out


def test_stream(ask):
    whole = ask(**ASK)
    events = list(ask(**ASK, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert kinds(events) == ONE_MESSAGE
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text and sum(e.type == "response.output_text.delta" for e in events) > 3
    last = events[-1].response
    assert last.output_text == text and last.usage.output_tokens == whole.usage.output_tokens
    assert events[0].response.status == events[1].response.status == "in_progress"
    assert events[0].response.id == last.id and events[0].response.output == []
    item = last.output[0].id
    assert all(e.item_id == item for e in events if hasattr(e, "item_id"))
    assert events[-2].item == last.output[0]


def test_a_stream_cut_by_length(ask):
    events = list(ask(**{**ASK, "max_output_tokens": 3}, stream=True))
    assert kinds(events) == [*ONE_MESSAGE[:-1], "response.incomplete"]
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert events[-2].item.status == "incomplete"


def test_raw_events(daemon):
    status, headers, body = daemon.request("POST", "/v1/responses", {**ASK, "stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    blocks = body.decode().strip().split("\n\n")
    for block in blocks:
        first, second = block.split("\n")
        assert first.removeprefix("event: ") == json.loads(second.removeprefix("data: "))["type"]
    assert b"[DONE]" not in body


def test_the_clients_stream_helper(client):
    with client.responses.stream(**ASK) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                assert event.snapshot.endswith(event.delta)
        assert stream.get_final_response().output_text == client.responses.create(**ASK).output_text


# ---- earlier responses


def test_previous_response(client, ask):
    one = ask(**{**ASK, "input": "My cat is called Biscuit."}, instructions="Be kind.")
    two = ask(**{**ASK, "input": "What is the name of my cat?"}, previous_response_id=one.id)
    history = [user("My cat is called Biscuit."), {"role": "assistant", "content": one.output_text},
               user("What is the name of my cat?")]
    text, usage = said(client, history)  # instructions are not taken along
    assert (two.output_text, two.usage.input_tokens) == (text, usage.prompt_tokens)
    assert two.previous_response_id == one.id
    three = list(ask(**{**ASK, "input": "Thanks!"}, previous_response_id=two.id, stream=True))[-1].response
    history += [{"role": "assistant", "content": two.output_text}, user("Thanks!")]
    assert three.usage.input_tokens == said(client, history)[1].prompt_tokens
    # a streamed one can be continued too, and one answer more than once
    four = ask(**{**ASK, "input": "Bye."}, previous_response_id=three.id)
    assert four.usage.input_tokens > three.usage.input_tokens
    assert ask(**{**ASK, "input": "Bye."}, previous_response_id=three.id).output_text == four.output_text


def test_get_and_delete(client, ask):
    answer = ask(**ASK, metadata={"k": "v"})
    assert client.responses.retrieve(answer.id) == answer
    client.responses.delete(answer.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            call(answer.id)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(**ASK, previous_response_id=answer.id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")


def test_store_false(client, ask):
    answer = ask(**ASK, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_input_items(client, ask):
    one = ask(**{**ASK, "input": [user("a"), {"role": "assistant", "content": "b"}, user("c")]})
    two = ask(**{**ASK, "input": "d"}, previous_response_id=one.id)

    def texts(**more):
        return [i.content[0].text for i in client.responses.input_items.list(two.id, **more)]

    everything = ["a", "b", "c", one.output_text, "d"]
    assert texts(order="asc") == everything and texts() == everything[::-1]
    assert texts(order="asc", limit=2) == everything, "the client turns the pages"
    page = client.responses.input_items.list(two.id, order="asc", limit=2)
    assert page.has_more and len(page.data) == 2 and page.data[0].id == page.first_id
    rest = client.responses.input_items.list(two.id, order="asc", after=page.last_id)
    assert [i.content[0].text for i in rest.data] == everything[2:] and not rest.has_more
    for bad in ({"limit": 0}, {"limit": 101}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            client.responses.input_items.list(two.id, **bad)


def test_methods(daemon):
    assert daemon.request("GET", "/v1/responses")[0] == 405
    status, headers, _ = daemon.request("POST", "/v1/responses/resp_x", {})
    assert status == 405 and headers["allow"] == "GET, HEAD, DELETE"
    assert daemon.request("GET", "/v1/responses/resp_x?stream=true")[0] == 400


def test_truncation(client, daemon, ask):
    context = json.loads(daemon.get("/v1/models")[2])["data"][0]["max_model_len"]
    turns = []
    for i in range(12):
        turns += [user(f"{i} " + "word " * (context // 8)), {"role": "assistant", "content": "Yes."}]
    turns = [{"role": "system", "content": "Hi."}, *turns, user("What is 3 + 4?")]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(**{**ASK, "input": turns})
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "input"
    assert "completion" not in str(refused.value)
    answer = ask(**{**ASK, "input": turns}, truncation="auto")
    assert context / 2 < answer.usage.input_tokens <= context - 40
    # as many of the last turns as fit
    fits = []
    for drop in range(12):
        try:
            fits.append(said(client, [turns[0], *turns[1 + 2 * drop:]])[1].prompt_tokens)
        except openai.BadRequestError:
            pass
    assert 1 < len(fits) < 12 and answer.usage.input_tokens == max(fits)


def test_tenants_do_not_see_each_other(start, tmp_path):
    import hashlib
    keys = {"tenants": [{"name": n, "keys": ["sha256:" + hashlib.sha256(f"key-{n}".encode()).hexdigest()]}
                        for n in ("a", "b")]}
    (tmp_path / "keys").write_text(json.dumps(keys))
    daemon = start("--api-key-file", str(tmp_path / "keys"))
    with connect(daemon, key="key-a") as a, connect(daemon, key="key-b") as b:
        answer = a.responses.create(**ASK)
        assert a.responses.retrieve(answer.id).id == answer.id
        for call in (b.responses.retrieve, b.responses.delete, b.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                call(answer.id)
        with pytest.raises(openai.BadRequestError):
            b.responses.create(**ASK, previous_response_id=answer.id)
        assert a.responses.create(**ASK, previous_response_id=answer.id).previous_response_id == answer.id
    with connect(daemon, key="none") as nobody, pytest.raises(openai.AuthenticationError):
        nobody.responses.retrieve(answer.id)


# ---- forms and tools


class Cat(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=12)]
    lives: Annotated[int, pydantic.Field(ge=1, le=9)]


def dumps(output):
    return [item.model_dump(mode="json", warnings=False) for item in output]


def test_forms(client, ask):
    asked = {**ASK, "temperature": 1.5, "max_output_tokens": 300}
    parsed = client.responses.parse(**asked, text_format=Cat)
    assert isinstance(parsed.output_parsed, Cat)
    for back in (parsed.output, dumps(parsed.output)):  # with what the client has read
        ask(**{**ASK, "input": [user("a"), *back, user("b")]})
    schema = {"type": "json_schema", "name": "n", "strict": True,
              "schema": {"type": "integer", "minimum": 5, "maximum": 7}}
    answer = ask(**asked, text={"format": schema})
    assert answer.output_text in ("5", "6", "7") and answer.text.format.name == "n"
    answer = ask(**{**asked, "max_output_tokens": 20}, text={"format": {"type": "json_object"}})
    assert answer.output_text.startswith("{")


CALL = {**ASK, "input": "Add 3 and 4.", "instructions": "Hi.", "temperature": 1.5, "max_output_tokens": 200,
        "tools": [ADD, SAY]}
NAMED = {"type": "function", "name": "Add"}


def test_tools(client, ask):
    for choice in (NAMED, "required", {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}):
        answer = ask(**CALL, tool_choice=choice, parallel_tool_calls=False)
        call, = answer.output
        assert (call.type, call.status) == ("function_call", "completed")
        assert call.id.startswith("fc_") and call.call_id.startswith("call_")
        assert call.name in ("Add", "Say") if choice == "required" else call.name == "Add"
        json.loads(call.arguments)
        assert answer.status == "completed" and answer.output_text == "" and len(answer.tools) == 2


def test_streamed_tools(ask):
    whole = ask(**CALL, tool_choice=NAMED, extra_body={"seed": 1}).output[0]
    events = list(ask(**CALL, tool_choice=NAMED, extra_body={"seed": 1}, stream=True))
    assert kinds(events) == ["response.created", "response.in_progress", "response.output_item.added",
                             "response.function_call_arguments.delta", "response.function_call_arguments.done",
                             "response.output_item.done", "response.completed"]
    made = events[-1].response.output[0]
    assert made == events[-2].item and (made.name, made.arguments) == (whole.name, whole.arguments)
    assert "".join(e.delta for e in events if e.type.endswith("arguments.delta")) == made.arguments
    assert events[2].item.arguments == "" and events[2].item.call_id == made.call_id


def test_the_clients_stream_helper_with_tools(client):
    tool = openai.pydantic_function_tool(Cat)["function"]
    asked = {**CALL, "tools": [{"type": "function", **tool}], "max_output_tokens": 100}
    with client.responses.stream(**asked, tool_choice="required", parallel_tool_calls=False) as stream:
        for _ in stream:
            pass
        call = stream.get_final_response().output[0]
        assert call.name == "Cat" and Cat.model_validate(call.parsed_arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "7"}
    for back in (call, *dumps([call])):
        client.responses.create(**{**ASK, "input": [user("a"), back, result]})


def test_results(client, ask):
    first = ask(**CALL, tool_choice=NAMED)
    call = first.output[0]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "7"}
    asked = {**ASK, "instructions": "Hi.", "tools": [ADD, SAY], "tool_choice": "none"}
    one = ask(**{**asked, "input": [result]}, previous_response_id=first.id)
    two = ask(**{**asked, "input": [user("Add 3 and 4."), *first.output, result]})
    text, usage = said(client, [
        {"role": "system", "content": "Hi."}, user("Add 3 and 4."),
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "Add", "arguments": call.arguments}}]},
        {"role": "tool", "tool_call_id": "c", "content": "7"}])
    for answer in (one, two):
        assert (answer.output_text, answer.usage.input_tokens) == (text, usage.prompt_tokens)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(**{**asked, "input": "And now?"}, previous_response_id=first.id)
    assert "tool_call_id" in str(refused.value) or "call" in str(refused.value)


# ---- refusals


BAD = [
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": []}, "input", "empty_array"),
    ({"input": 5}, "input", "invalid_type"),
    ({"input": [5]}, "input[0]", "invalid_type"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "invalid_value"),
    ({"input": [user("a"), {"type": "reasoning", "summary": []}]}, "input[1].type", "unsupported_parameter"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     "input[0].content[0].type", "invalid_value"),
    ({"input": [user("a"), {"type": "function_call_output", "call_id": "c", "output": "x"}]},
     "input[1].call_id", "invalid_value"),
    ({"input": [user("a"), {"type": "function_call", "call_id": "c", "name": "f", "arguments": []},
                {"type": "function_call_output", "call_id": "c", "output": "x"}]},
     "input[1].arguments", "invalid_type"),
    ({"max_output_tokens": 0}, "max_output_tokens", None),
    ({"max_output_tokens": 10**6}, "input", "context_length_exceeded"),
    ({"temperature": 3}, "temperature", None),
    ({"truncation": "some"}, "truncation", "invalid_value"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}, "text.format.name", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"nope": 1}}}}, "text.format.schema",
     "invalid_json_schema"),
    ({"text": {"verbosity": "high"}}, "text.verbosity", "unsupported_parameter"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
    ({"tools": [ADD], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "invalid_value"),
    ({"include": ["x"]}, "include[0]", "invalid_value"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
    ({"reasoning": {"effort": "none", "summary": "auto"}}, "reasoning.summary", "unsupported_parameter"),
    ({"reasoning": {"depth": 1}}, "reasoning.depth", "unknown_parameter"),
    ({"reasoning": "none"}, "reasoning", "invalid_type"),
    ({"conversation": "c"}, "conversation", "unsupported_parameter"),
    ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
    ({"max_tool_calls": 3}, "max_tool_calls", "unsupported_parameter"),
    ({"messages": []}, "messages", "unknown_parameter"),
    ({"n": 2}, "n", "unknown_parameter"),
]


@pytest.mark.parametrize("fields, param, code", BAD, ids=lambda v: str(v)[:40])
def test_refusals(daemon, fields, param, code):
    status, _, body = daemon.request("POST", "/v1/responses", {**ASK, **fields})
    error = json.loads(body)["error"]
    assert status == 400 and error["param"] == param, error
    assert code is None or error["code"] == code, error


def test_the_clients_own_fields(daemon):
    """Every field of the client's schema is either taken or refused by name."""
    from openai.types.responses import response_create_params as params
    names = set(params.ResponseCreateParamsBase.__annotations__) | {"stream"}
    for name in names:
        status, _, body = daemon.request("POST", "/v1/responses", {**ASK, name: object_of(name)})
        error = json.loads(body)["error"] or {"code": None}
        assert error["code"] != "unknown_parameter", name


def object_of(name):
    """A value of the wrong type for everything: what matters is whether the name is known."""
    return ASK.get(name, [[]])
