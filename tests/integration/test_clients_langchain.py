# SPDX-License-Identifier: Apache-2.0
"""LangChain's ChatOpenAI, as its users call it: invoke, stream, batch, their asynchronous twins, chains, tools and
structured output. What it makes of an answer is held against what the `openai` client was told."""

import asyncio
from typing import Annotated, Literal

import openai
import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from client import MODEL, connect, user

QUESTIONS = ("Hello!", "What is 7 + 8?", "Spell the word tiger.", "Hi, I am Mina and I live in Lisbon.")


@pytest.fixture(scope="module")
def loop():
    """One for all tests, as models with the same address share their connections."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def make(daemon):
    """make(**options): a model that asks our daemon."""
    return lambda **options: ChatOpenAI(**{
        "base_url": daemon.url + "/v1", "api_key": "none", "model": MODEL, "temperature": 0, "max_tokens": 60,
        "max_retries": 0, "timeout": 120, **options})


@pytest.fixture
def said(daemon):
    """said(messages): what the `openai` client is told."""
    with connect(daemon) as client:
        yield lambda messages: client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=60)


def test_invoke(make, said):
    answer = make().invoke("What is 7 + 8?")
    expected = said([user("What is 7 + 8?")])
    assert answer.content == expected.choices[0].message.content
    assert answer.response_metadata["finish_reason"] == expected.choices[0].finish_reason == "stop"
    assert answer.response_metadata["model_name"] == MODEL
    assert answer.usage_metadata["input_tokens"] == expected.usage.prompt_tokens
    assert answer.usage_metadata["output_tokens"] == expected.usage.completion_tokens


def test_a_chat_with_every_kind_of_message(make, said):
    talk = [SystemMessage("You are helpful."), HumanMessage("Hi, I am Mina and I live in Lisbon."),
            AIMessage("Nice to meet you, Mina from Lisbon!"), HumanMessage("What is my name?")]
    plain = [{"role": role, "content": one.content}
             for role, one in zip(("system", "user", "assistant", "user"), talk)]
    assert make().invoke(talk).content == said(plain).choices[0].message.content
    longer = [*talk, make().invoke(talk), HumanMessage("Spell the word tiger.")]  # its own answer goes back
    assert make().invoke(longer).content


def test_stream(make, said):
    expected = said([user("Spell the word tiger.")])
    chunks = list(make(stream_usage=True).stream("Spell the word tiger."))
    assert "".join(one.content for one in chunks) == expected.choices[0].message.content
    assert sum(bool(one.content) for one in chunks) > 3
    whole = chunks[0]
    for one in chunks[1:]:
        whole += one
    assert whole.usage_metadata["output_tokens"] == expected.usage.completion_tokens
    assert whole.response_metadata["finish_reason"] == "stop"


def test_batch_and_the_asynchronous_calls(make, said, loop):
    expected = [said([user(one)]).choices[0].message.content for one in QUESTIONS]
    model = make()
    assert [one.content for one in model.batch(list(QUESTIONS), {"max_concurrency": 4})] == expected

    async def later():
        pieces = [one.content async for one in model.astream(QUESTIONS[0])]
        return (await model.ainvoke(QUESTIONS[1])).content, await model.abatch(list(QUESTIONS[2:])), "".join(pieces)

    second, rest, first = loop.run(later())
    assert [first, second, *(one.content for one in rest)] == expected


def test_a_chain_with_stop_and_options(make, said):
    full = said([user("Spell the word tiger.")]).choices[0].message.content
    chain = ChatPromptTemplate([("user", "Spell the word {word}.")]) | make() | StrOutputParser()
    assert chain.invoke({"word": "tiger"}) == full
    assert make().bind(stop=[full[3]]).invoke("Spell the word tiger.").content == full.partition(full[3])[0]
    wild = make(temperature=1.5, seed=3, top_p=0.9, frequency_penalty=0.5, extra_body={"top_k": 40, "min_tokens": 5})
    assert wild.invoke("Hello!").content == wild.invoke("Hello!").content
    scored = make(logprobs=True, top_logprobs=2).invoke("Hello!").response_metadata["logprobs"]["content"]
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) == 2 for one in scored)


def test_errors(make):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        make(temperature=9).invoke("Hello!")
    with pytest.raises(openai.NotFoundError):
        make(model="another").invoke("Hello!")
    with pytest.raises(openai.BadRequestError) as caught:
        make().invoke("word " * 5000)
    assert caught.value.code == "context_length_exceeded"


# ---- tools and structured output: bounded in length, as the model may well not know when to end


@tool
def add(a: Annotated[int, pydantic.Field(ge=0, le=99)], b: Annotated[int, pydantic.Field(ge=0, le=99)]) -> int:
    """Adds."""
    return a + b


class Cat(pydantic.BaseModel):
    """A cat."""
    name: Annotated[str, pydantic.Field(max_length=12)]
    colour: Literal["black", "ginger"]
    lives: Annotated[int, pydantic.Field(ge=1, le=9)]


def test_tools(make):
    model = make(max_tokens=300).bind_tools([add], tool_choice="any")
    asked = [HumanMessage("Add 3 and 4.")]
    answer = model.invoke(asked)
    (call,) = answer.tool_calls
    assert call["name"] == "add" and answer.invalid_tool_calls == []
    result = add.invoke(call)
    assert isinstance(result, ToolMessage) and int(result.content) == call["args"]["a"] + call["args"]["b"]
    assert make(max_tokens=300).bind_tools([add], tool_choice="none").invoke([*asked, answer, result]).tool_calls == []

    whole = None
    for one in model.stream(asked):
        whole = one if whole is None else whole + one
    assert [(one["name"], one["args"]) for one in whole.tool_calls] == [(call["name"], call["args"])]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(make, loop, method):
    model = make(max_tokens=300).with_structured_output(Cat, method=method, include_raw=True)
    for question in ("Tell me about a cat.", "Hello!"):
        answer = model.invoke(question)
        assert isinstance(answer["parsed"], Cat) and answer["parsing_error"] is None, answer
    assert isinstance(loop.run(model.ainvoke("Hello!"))["parsed"], Cat)


# ---- /v1/responses


def text_of(answer):
    return "".join(one["text"] for one in answer.content if one["type"] == "text")


def test_responses(make, said):
    model = make(use_responses_api=True, use_previous_response_id=True)
    expected = said([user("Hi, I am Mina and I live in Lisbon.")])
    first = model.invoke("Hi, I am Mina and I live in Lisbon.")
    assert text_of(first) == expected.choices[0].message.content
    assert first.usage_metadata["output_tokens"] == expected.usage.completion_tokens
    whole = None
    for one in model.stream("Hi, I am Mina and I live in Lisbon."):
        whole = one if whole is None else whole + one
    assert text_of(whole) == text_of(first)
    # the history is the daemon's: what is sent is the last message
    talk = [HumanMessage("Hi, I am Mina and I live in Lisbon."), first, HumanMessage("What is my name?")]
    plain = [user(talk[0].content), {"role": "assistant", "content": text_of(first)}, user(talk[2].content)]
    assert text_of(model.invoke(talk)) == said(plain).choices[0].message.content
    parsed = make(use_responses_api=True, max_tokens=300).with_structured_output(Cat).invoke("Tell me about a cat.")
    assert isinstance(parsed, Cat)
