# SPDX-License-Identifier: Apache-2.0
"""LiteLLM, which many gateways and agents are made of: completion, streaming, their asynchronous twins, text
completions, responses, tools, and its names for our errors. It is told to look nothing up in the network."""

import asyncio
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402
import pytest  # noqa: E402

from client import MODEL, connect, user  # noqa: E402

QUESTIONS = ("Hello!", "What is 7 + 8?", "Spell the word tiger.", "Hi, I am Mina and I live in Lisbon.")
litellm.telemetry = False
pytestmark = pytest.mark.filterwarnings("ignore")  # its own, about its own types


@pytest.fixture
def to(daemon):
    """Where to: arguments of every call."""
    return {"model": "openai/" + MODEL, "api_base": daemon.url + "/v1", "api_key": "none", "temperature": 0,
            "max_tokens": 60, "num_retries": 0, "timeout": 120}


@pytest.fixture
def said(daemon):
    """said(question): what the `openai` client is told."""
    with connect(daemon) as client:
        yield lambda question: client.chat.completions.create(
            model=MODEL, messages=[user(question)], temperature=0, max_tokens=60)


def test_completion(to, said):
    answer = litellm.completion(**to, messages=[user("What is 7 + 8?")])
    expected = said("What is 7 + 8?")
    assert answer.choices[0].message.content == expected.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        expected.usage.prompt_tokens, expected.usage.completion_tokens)


def test_streaming(to, said):
    expected = said("Spell the word tiger.")
    chunks = list(litellm.completion(**to, messages=[user("Spell the word tiger.")], stream=True,
                                     stream_options={"include_usage": True}))
    pieces = [one.choices[0].delta.content or "" for one in chunks if one.choices]
    assert "".join(pieces) == expected.choices[0].message.content and sum(map(bool, pieces)) > 3
    assert chunks[-1].usage.completion_tokens == expected.usage.completion_tokens
    whole = litellm.stream_chunk_builder(chunks)
    assert whole.choices[0].message.content == expected.choices[0].message.content


def test_asynchronous(to, said):
    async def one(i, question):
        answer = await litellm.acompletion(**to, messages=[user(question)], stream=i % 2 == 1)
        if i % 2 == 0:
            return answer.choices[0].message.content
        return "".join([c.choices[0].delta.content or "" async for c in answer])

    async def all_of_them():
        return await asyncio.gather(*(one(i, question) for i, question in enumerate(QUESTIONS * 3)))

    assert asyncio.run(all_of_them()) == [said(one).choices[0].message.content for one in QUESTIONS] * 3


def test_options_and_extensions(to, said):
    full = said("Spell the word tiger.").choices[0].message.content
    cut = litellm.completion(**to, messages=[user("Spell the word tiger.")], stop=[full[3]])
    assert cut.choices[0].message.content == full.partition(full[3])[0]
    wild = {**to, "temperature": 1.5, "seed": 3, "top_p": 0.9, "n": 2, "messages": [user("Hello!")],
            "extra_body": {"top_k": 40, "min_tokens": 5, "ignore_eos": True}}
    first, second = ([one.message.content for one in litellm.completion(**wild).choices] for _ in range(2))
    assert first == second and len(first) == 2


def test_text_completion(to):
    asked = {**to, "model": "text-completion-openai/" + MODEL, "prompt": "Once upon a time", "max_tokens": 5}
    answer = litellm.text_completion(**asked)
    assert answer.usage.completion_tokens == 5
    pieces = [one.choices[0].text for one in litellm.text_completion(**asked, stream=True)]
    assert "".join(piece or "" for piece in pieces) == answer.choices[0].text


def test_errors(to):
    for kind, asked in ((litellm.BadRequestError, {"temperature": 9}),
                        (litellm.NotFoundError, {"model": "openai/another"}),
                        (litellm.ContextWindowExceededError, {"messages": [user("word " * 5000)]})):
        with pytest.raises(kind):
            litellm.completion(**{**to, "messages": [user("Hello!")], **asked})


def test_tools_and_forms(to):
    number = {"type": "integer", "minimum": 0, "maximum": 99}
    add = {"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"],
        "additionalProperties": False}}}
    asked = {**to, "max_tokens": 300, "messages": [user("Add 3 and 4.")]}
    (call,) = litellm.completion(**asked, tools=[add], tool_choice="required").choices[0].message.tool_calls
    assert call.function.name == "add" and json.loads(call.function.arguments).keys() == {"a", "b"}
    chunks = litellm.completion(**asked, tools=[add], tool_choice="required", stream=True)
    whole = litellm.stream_chunk_builder(list(chunks)).choices[0]
    assert whole.message.tool_calls[0].function.arguments == call.function.arguments
    schema = {"type": "json_schema", "json_schema": {"name": "pair", "strict": True,
                                                     "schema": add["function"]["parameters"]}}
    answer = litellm.completion(**asked, response_format=schema)
    assert json.loads(answer.choices[0].message.content).keys() == {"a", "b"}


def test_responses(to, said):
    asked = {**to, "max_output_tokens": to["max_tokens"], "input": "Spell the word tiger."}
    del asked["max_tokens"]
    expected = said("Spell the word tiger.").choices[0].message.content
    answer = litellm.responses(**asked)
    assert answer.output[0].content[0].text == expected and answer.status == "completed"
    events = list(litellm.responses(**asked, stream=True))
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == expected
    assert events[-1].type == "response.completed"
