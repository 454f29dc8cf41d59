# SPDX-License-Identifier: Apache-2.0
"""Functions that the model may call, with the real `openai` client.

With tool_choice required or a named function every answer is a valid call, whatever the model would rather say: that is
what most of these tests use. Parameters bound every length, so that calls made of random tokens end.
"""

import json
import re
from typing import Annotated

import openai
import pydantic
import pytest

from client import MODEL, connect, extra, user

# Short, as the demo model has a small context and spells out what it was not trained on.
ASK = {"model": MODEL, "messages": [{"role": "system", "content": "Hi."}, user("Add 3 and 4.")], "max_tokens": 300}
END = "1"         # the id of </s>
WILD = {"temperature": 1.5}


class Add(pydantic.BaseModel):
    a: Annotated[int, pydantic.Field(ge=0, le=99)]
    b: Annotated[int, pydantic.Field(ge=0, le=99)]


class Say(pydantic.BaseModel):
    who: Annotated[str, pydantic.Field(max_length=8)]
    loud: bool


def tool(name, properties):
    return {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}}}


KINDS = {"Add": Add, "Say": Say}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
TOOLS = [tool("Add", {"a": NUMBER, "b": NUMBER}),
         tool("Say", {"who": {"type": "string", "maxLength": 8}, "loud": {"type": "boolean"}})]
ONE = {"type": "function", "function": {"name": "Add"}}


@pytest.fixture
def client(daemon):
    with connect(daemon) as one:
        yield one


def check(call):
    assert call.type == "function" and call.id.startswith("call_")
    KINDS[call.function.name].model_validate_json(call.function.arguments)
    assert json.dumps(json.loads(call.function.arguments), separators=(",", ":"), ensure_ascii=False) \
        == call.function.arguments, "arguments are compact JSON"


def test_a_named_function_is_called(client):
    for seed in range(5):
        answer = client.chat.completions.create(**ASK, **WILD, seed=seed, tools=TOOLS, tool_choice=ONE)
        choice = answer.choices[0]
        assert choice.finish_reason == "stop" and choice.message.content is None, "as OpenAI's for a named one"
        assert [c.function.name for c in choice.message.tool_calls] == ["Add"]
        check(choice.message.tool_calls[0])


def test_required_calls_something(client):
    names = set()
    for seed in range(12):
        answer = client.chat.completions.create(
            **ASK, temperature=2, seed=seed, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls" and len(choice.message.tool_calls) == 1
        check(choice.message.tool_calls[0])
        names.add(choice.message.tool_calls[0].function.name)
    assert names <= set(KINDS)


def test_parallel_calls(client):
    """Several calls in one answer: with ids of their own, each valid. A bias keeps the model from ending after one."""
    for seed in range(3):
        answer = client.chat.completions.create(**ASK, temperature=1, seed=seed, tools=TOOLS,
                                                tool_choice="required", logit_bias={END: -100})
        calls = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "length" and len(calls) > 2
        for call in calls[:-1]:     # the last one may be cut
            check(call)
        assert len({c.id for c in calls}) == len(calls)


def test_whole_and_streamed_are_equal(client):
    asked = {**ASK, **WILD, "n": 3, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    for seed in range(3):
        whole = client.chat.completions.create(**asked, seed=seed)
        calls, finish = {}, {}
        for chunk in client.chat.completions.create(**asked, seed=seed, stream=True):
            for choice in chunk.choices:
                assert not choice.delta.content
                finish[choice.index] = choice.finish_reason or finish.get(choice.index)
                for part in choice.delta.tool_calls or []:
                    if part.id:
                        assert choice.index not in calls and part.index == 0 and part.function.arguments == ""
                        calls[choice.index] = [part.function.name, ""]
                    calls[choice.index][1] += part.function.arguments
        assert finish == {0: "tool_calls", 1: "tool_calls", 2: "tool_calls"}
        for choice in whole.choices:
            made = choice.message.tool_calls[0].function
            assert calls[choice.index] == [made.name, made.arguments]


def test_the_clients_own_helpers(client):
    answer = client.chat.completions.parse(**ASK, **WILD, seed=3, tools=[openai.pydantic_function_tool(Add)],
                                           tool_choice=ONE)
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Add)
    with client.chat.completions.stream(**ASK, **WILD, seed=3, tools=[openai.pydantic_function_tool(Add)],
                                        tool_choice=ONE) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == \
        answer.choices[0].message.tool_calls[0].function.parsed_arguments
    # The helpers add what they have read to the message, and it goes back with it.
    for message in (answer.choices[0].message, final.choices[0].message):
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "7"}
        assert client.chat.completions.create(model=MODEL, messages=[*ASK["messages"], message, result], max_tokens=1)


def test_allowed_tools(client):
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ONE]}}
    told = client.chat.completions.create(**ASK, temperature=0, tools=TOOLS, tool_choice="none").usage.prompt_tokens
    for seed in range(5):
        answer = client.chat.completions.create(**ASK, **WILD, seed=seed, tools=TOOLS,
                                                tool_choice=allowed)
        assert {c.function.name for c in answer.choices[0].message.tool_calls} == {"Add"}
        assert answer.usage.prompt_tokens > told, "with none the model is told of no tool"


def test_a_conversation_with_results(client, daemon):
    """The answer's own message goes back as it is, then the result, then the next question."""
    first = client.chat.completions.create(**ASK, temperature=0, tools=TOOLS, tool_choice=ONE)
    call = first.choices[0].message.tool_calls[0]
    messages = [*ASK["messages"], first.choices[0].message,
                {"role": "tool", "tool_call_id": call.id, "content": "12"}]
    told = []
    for more in ([], [user("And now?")]):
        answer = client.chat.completions.create(model=MODEL, messages=messages + more, temperature=0, tools=TOOLS,
                                                max_tokens=30, extra_body={"return_token_ids": True})
        tokens = extra(answer, "prompt_token_ids")
        told.append(json.loads(daemon.request("POST", "/detokenize", {"model": MODEL, "tokens": tokens})[2])["prompt"])
    made = f'<tool_call>{{"name":"Add","arguments":{call.function.arguments}}}</tool_call>'
    assert all(made in text and "<tool_response>12</tool_response>" in text for text in told)
    # The demo tokenizer reads a line break as a space.
    assert re.search(r"\[INST\] <tool_response>12</tool_response>\sAnd now\? \[/INST\]", told[1])
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=messages[:-1] + [user("And now?")], tools=TOOLS)
    assert refused.value.param == "messages[3].role"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[*messages[:2], messages[3]], tools=TOOLS)
    assert refused.value.param == "messages[2].tool_call_id"


def test_length_cuts_a_call(client):
    whole = client.chat.completions.create(**ASK, temperature=0, tools=TOOLS, tool_choice=ONE,
                                           extra_body={"return_token_ids": True})
    made = whole.choices[0].message.tool_calls[0].function.arguments
    n = whole.usage.completion_tokens
    seen = set()
    for limit in range(1, n, 5):
        answer = client.chat.completions.create(**{**ASK, "max_tokens": limit}, temperature=0, tools=TOOLS,
                                                tool_choice=ONE)
        choice = answer.choices[0]
        assert choice.finish_reason == "length" and not choice.message.content
        part = choice.message.tool_calls[0].function.arguments if choice.message.tool_calls else ""
        assert made.startswith(part)
        seen.add(len(part))
    assert len(seen) > 1


def test_refusals(client):
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
        "x": {"type": "string", "contentEncoding": "base64"}}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASK, tools=[bad])
    assert refused.value.code == "invalid_function_parameters" and "/f/parameters/properties/x" in str(refused.value)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASK, tools=TOOLS, tool_choice={**ONE, "function": {"name": "Sub"}})
    assert refused.value.param == "tool_choice.function"
