# SPDX-License-Identifier: Apache-2.0
"""Answers of a given form, with the real `openai` client: JSON, schemas, regular expressions, choices, grammars.

What the model says is its own business; that it has the form is ours, however it is sampled. Schemas here bound every
length, so that an answer of random tokens ends.
"""

import enum
import json
import re
import threading
from typing import Annotated

import openai
import pydantic
import pytest

from client import MODEL, Stream, connect, extra, user

ASK = {"model": MODEL, "messages": [user("Tell me about a cat.")], "max_tokens": 600}
WILD = {"temperature": 1.5}


class Colour(str, enum.Enum):
    BLACK = "black"
    GINGER = "ginger"


class Cat(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=12)]
    colour: Colour
    lives: Annotated[int, pydantic.Field(ge=1, le=9)]
    kittens: Annotated[list[Annotated[str, pydantic.Field(max_length=5)]], pydantic.Field(max_length=2)]


def schema_of(model, name="cat"):
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": model.model_json_schema()}}


@pytest.fixture
def client(daemon):
    with connect(daemon) as one:
        yield one


def test_parse_with_a_pydantic_model(client):
    for seed in range(8):
        answer = client.chat.completions.parse(**ASK, **WILD, seed=seed, response_format=Cat)
        cat = answer.choices[0].message.parsed
        assert isinstance(cat, Cat) and 1 <= cat.lives <= 9 and cat.colour in Colour
        assert answer.choices[0].finish_reason == "stop"
    message = answer.choices[0].message
    for told in (message, message.model_dump(mode="json", warnings=False)):  # with what the client has read
        client.chat.completions.create(model=MODEL, messages=[*ASK["messages"], told, user("And?")], max_tokens=1)


def test_whole_and_streamed_are_equal(client):
    asked = {**ASK, **WILD, "seed": 5, "n": 3, "response_format": schema_of(Cat), "logprobs": True}
    whole = client.chat.completions.create(**asked)
    stream = Stream(client.chat.completions.create(**asked, stream=True))
    for choice in whole.choices:
        Cat.model_validate_json(choice.message.content)
        assert stream.text[choice.index] == choice.message.content
        assert stream.finish[choice.index] == "stop"
        spelled = b"".join(bytes(t.bytes) for t in choice.logprobs.content)  # a token may be part of a character
        assert spelled.decode().strip() == choice.message.content
    assert len({c.message.content for c in whole.choices}) > 1


def test_stream_helper_parses(client):
    with client.chat.completions.stream(**ASK, temperature=0, response_format=Cat) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Cat)


def test_json_object(client):
    """Without a schema an answer may be long: what came of it is the beginning of an object."""
    for seed in range(4):
        answer = client.chat.completions.create(
            **{**ASK, "max_tokens": 60}, **WILD, seed=seed, response_format={"type": "json_object"})
        choice = answer.choices[0]
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.finish_reason == "length" and answer.usage.completion_tokens == 60


FORMS = [
    ({"regex": r"[a-f]{2,5}(-\d{1,3})?"}, lambda s: re.fullmatch(r"[a-f]{2,5}(-\d{1,3})?", s)),
    ({"choice": ["yes", "no", "don't know"]}, lambda s: s in ("yes", "no", "don't know")),
    ({"grammar": 'root ::= pair | pair "," pair\npair ::= [a-c] "=" [0-9]'},
     lambda s: re.fullmatch(r"[a-c]=\d(,[a-c]=\d)?", s)),
    ({"json": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}},
     lambda s: 2 <= len(json.loads(s)) <= 3),
]


@pytest.mark.parametrize("form, check", FORMS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
@pytest.mark.parametrize("old", [False, True], ids=["structured_outputs", "guided"])
def test_other_forms(client, form, check, old):
    name, value = next(iter(form.items()))
    body = {f"guided_{name}": value} if old else {"structured_outputs": form}
    for seed in range(5):
        chat = client.chat.completions.create(**ASK, **WILD, seed=seed, extra_body=body)
        assert check(chat.choices[0].message.content) and chat.choices[0].finish_reason == "stop"
        text = client.completions.create(
            model=MODEL, prompt="A cat", max_tokens=600, **WILD, seed=seed, extra_body=body)
        assert check(text.choices[0].text) and text.choices[0].finish_reason == "stop"


def test_a_completion_of_token_ids_and_echo(client):
    body = {"structured_outputs": {"choice": ["black", "white"]}}
    answer = client.completions.create(model=MODEL, prompt="The cat is", echo=True, temperature=0, extra_body=body)
    assert answer.choices[0].text in ("The cat isblack", "The cat iswhite")


def test_length_stop_and_min_tokens(client):
    asked = {**ASK, "temperature": 0, "response_format": schema_of(Cat)}
    whole = client.chat.completions.create(**asked, extra_body={"return_token_ids": True})
    text = whole.choices[0].message.content
    cut = client.chat.completions.create(**{**asked, "max_tokens": 3})
    assert cut.choices[0].finish_reason == "length" and text.startswith(cut.choices[0].message.content)
    stopped = client.chat.completions.create(**asked, stop=['"colour"'])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[:text.index('"colour"')]
    # The form ends the answer, whatever min_tokens says; the end token is not forbidden for nothing.
    longer = client.chat.completions.create(**asked, extra_body={"min_tokens": 500})
    assert longer.choices[0].finish_reason == "stop"
    Cat.model_validate_json(longer.choices[0].message.content)
    # A stop id is an end like the end token: it can't cut the text short.
    first = extra(whole.choices[0], "token_ids")[0]
    kept = client.chat.completions.create(**asked, extra_body={"stop_token_ids": [first]})
    Cat.model_validate_json(kept.choices[0].message.content)


def test_refusals_name_the_place(client):
    bad = {"type": "object", "properties": {"a": {"type": "string", "contentEncoding": "base64"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASK, response_format=form)
    assert refused.value.param == "response_format.json_schema.schema"
    assert "/properties/a" in str(refused.value) and "contentEncoding" in str(refused.value)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="a", extra_body={"structured_outputs": {"regex": "("}})
    assert refused.value.param == "structured_outputs.regex"


def test_company(client):
    """Requests with different forms at once, each with what it gives alone."""
    forms = [schema_of(Cat), None, {"type": "json_object"}] * 4
    asked = [{**ASK, "max_tokens": 40, **WILD, "seed": i, **({"response_format": f} if f else {})}
             for i, f in enumerate(forms)]

    def say(a):
        return client.chat.completions.create(**a).choices[0].message.content

    alone = [say(a) for a in asked]
    together = [None] * len(asked)
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, say(asked[i]))) for i in range(len(asked))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert together == alone
