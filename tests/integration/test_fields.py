# SPDX-License-Identifier: Apache-2.0
"""Every field of the `openai` client's own types, and the fields that vLLM and SGLang add.

The first part walks the types of the installed client, so that a release with a new field shows up
here: no field may be unknown to the daemon. The second part judges what fields do by the model's
own answers, whatever the model is.
"""

import json
import typing

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import (
    chat_completion_content_part_param as part_params,
    chat_completion_message_param as message_params,
    chat_completion_stream_options_param as stream_params,
    completion_create_params as chat_params,
)

from client import MODEL, Stream, connect, extra, user

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WRONG = {"no such key": True}  # no field of either endpoint means something by this
GREEDY = {"model": MODEL, "messages": [user("Hello! What can you do?")], "temperature": 0, "max_tokens": 24}
IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def client(daemon):
    with connect(daemon) as one:
        yield one


@pytest.fixture(scope="module")
def chat(client):
    def asked(stream=False, more=None, **fields):
        return client.chat.completions.create(**{**GREEDY, **fields}, stream=stream, extra_body=more)

    return asked


def post(daemon, path, body):
    status, _, answer = daemon.request("POST", path, body)
    return status, json.loads(answer)


# ---- the client's types


def fields_of(kind):
    """The field names of a TypedDict, or of each member of a union of them."""
    if typing.get_origin(kind) is typing.Union:
        return sorted({name for member in typing.get_args(kind) for name in fields_of(member)})
    return sorted(kind.__annotations__)


def is_known(daemon, path, body, param):
    """A field is known when a value that it can't have is refused in its own name."""
    status, answer = post(daemon, path, body)
    assert status == 400, (param, answer)
    error = answer["error"]
    assert error["param"].startswith(param), error
    return not (error["param"] == param and error["code"] == "unknown_parameter")


@pytest.mark.parametrize("name", fields_of(chat_params.CompletionCreateParams))
def test_chat_field_is_known(daemon, name):
    if name == "prompt_cache_options":  # an object without effect here
        assert post(daemon, CHAT, {**GREEDY, name: WRONG})[0] == 200
        return
    assert is_known(daemon, CHAT, {"model": MODEL, "messages": GREEDY["messages"], name: WRONG}, name)


@pytest.mark.parametrize("name", fields_of(completion_params.CompletionCreateParams))
def test_completion_field_is_known(daemon, name):
    assert is_known(daemon, TEXT, {"model": MODEL, "prompt": "x", name: WRONG}, name)


@pytest.mark.parametrize("name", fields_of(stream_params.ChatCompletionStreamOptionsParam))
def test_stream_option_is_known(daemon, name):
    body = {**GREEDY, "stream": True, "stream_options": {name: WRONG}}
    assert is_known(daemon, CHAT, body, f"stream_options.{name}")


ROLES = {
    typing.get_args(typing.get_args(typing.get_type_hints(kind, include_extras=True)["role"])[0])[0]: kind
    for kind in typing.get_args(message_params.ChatCompletionMessageParam)
}


def test_roles():
    assert set(ROLES) == {"developer", "system", "user", "assistant", "tool", "function"}


@pytest.mark.parametrize("role, name", [(r, n) for r, kind in ROLES.items() for n in fields_of(kind)])
def test_message_field_is_known(daemon, role, name):
    """The old role `function` is refused as such."""
    message = {"role": role, "content": "x", name: WRONG}
    param = "messages[0].role" if role == "function" else f"messages[0].{name}"
    assert is_known(daemon, CHAT, {**GREEDY, "messages": [message]}, param)


@pytest.mark.parametrize("kind", typing.get_args(part_params.ChatCompletionContentPartParam))
def test_content_part_is_known(daemon, kind):
    """Text is read; a picture, a sound or a file is refused by its type."""
    (name,) = typing.get_args(typing.get_args(typing.get_type_hints(kind, include_extras=True)["type"])[0])
    status, answer = post(daemon, CHAT, {**GREEDY, "messages": [user([{"type": name, name: "x"}])]})
    assert (status, answer.get("error", {}).get("param")) == (
        (200, None) if name == "text" else (400, "messages[0].content[0].type")
    )


# ---- the envelope


def test_envelope(chat):
    answer = chat(store=True, metadata={"run": "7"}, service_tier="auto", more={"request_id": "my-id.1"})
    assert answer.id == "chatcmpl-my-id.1"
    assert answer.metadata == {"run": "7"}
    assert answer.service_tier == "default"
    assert answer.system_fingerprint.startswith("openmoed-")
    plain = chat()
    assert plain.metadata is None and plain.service_tier is None
    stream = Stream(chat(stream=True, service_tier="priority", more={"request_id": "s"}))
    assert {(c.id, c.service_tier) for c in stream.chunks} == {("chatcmpl-s", "default")}


def test_usage_details(chat):
    usage = chat().usage
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    details = usage.completion_tokens_details
    assert (details.reasoning_tokens, details.audio_tokens) == (0, 0)
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, 0)


def test_usage_in_every_chunk(chat):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(chat(stream=True, stream_options=options, n=2))
    counted = {0: [], 1: []}
    for chunk in chunks[:-1]:
        counted[chunk.choices[0].index].append(chunk.usage.completion_tokens)
    assert all(counts == sorted(counts) and counts[0] <= 1 for counts in counted.values())
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == counted[0][-1] + counted[1][-1]
    assert {c.usage.prompt_tokens for c in chunks} == {chunks[-1].usage.prompt_tokens}


def test_model_card(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "openmoed")
    assert (extra(model, "root"), extra(model, "parent")) == (MODEL, None)
    assert extra(model, "max_model_len") > 0


# ---- what an answer may have


def words_of(daemon, ids):
    """Tokens that are a word each, with their texts."""
    for one in dict.fromkeys(ids):
        text = post(daemon, "/detokenize", {"model": MODEL, "tokens": [one]})[1]["prompt"].strip()
        found = post(daemon, "/tokenize", {"model": MODEL, "prompt": text, "add_special_tokens": False})[1]
        if text.isalpha() and found["tokens"] == [one]:
            yield one, text


def test_bad_words(daemon, chat):
    before = extra(chat(more=IDS).choices[0], "token_ids")
    tried = list(words_of(daemon, before))[:3]
    assert tried
    for one, text in tried:
        after = extra(chat(more={**IDS, "bad_words": [text]}).choices[0], "token_ids")
        assert one not in after
    everything = [text for _, text in tried]
    after = extra(chat(more={**IDS, "bad_words": everything}).choices[0], "token_ids")
    assert not {one for one, _ in tried} & set(after)


def test_bad_phrase(daemon, chat):
    """Of several tokens only the row of all of them is banned, not its parts."""
    before = extra(chat(more=IDS).choices[0], "token_ids")
    for i in range(len(before) - 2):
        text = post(daemon, "/detokenize", {"model": MODEL, "tokens": before[i : i + 2]})[1]["prompt"].strip()
        found = post(daemon, "/tokenize", {"model": MODEL, "prompt": text, "add_special_tokens": False})[1]
        if found["tokens"] == before[i : i + 2]:
            break
    else:
        pytest.fail("no two tokens of the answer are a text of their own")
    after = extra(chat(more={**IDS, "bad_words": [text]}).choices[0], "token_ids")
    assert after[: i + 1] == before[: i + 1]
    assert after[i + 1] != before[i + 1]
    assert list(zip(after, after[1:])).count(tuple(before[i : i + 2])) == 0


def test_allowed_token_ids(chat):
    before = extra(chat(more=IDS).choices[0], "token_ids")
    allowed = sorted(set(before[:6]))
    after = chat(temperature=2, seed=5, more={**IDS, "allowed_token_ids": allowed})
    assert set(extra(after.choices[0], "token_ids")) <= set(allowed)
    only = chat(more={**IDS, "allowed_token_ids": before[:1]})
    assert extra(only.choices[0], "token_ids") == before[:1] * 24
    assert only.choices[0].finish_reason == "length"  # the end token is not among them


def test_allowed_beside_a_grammar(chat):
    """Both hold: of two choices the one is left whose tokens are allowed."""
    options = {"structured_outputs": {"choice": ["yes", "no"]}}
    first = chat(more={**IDS, **options}).choices[0]
    ids = extra(first, "token_ids")
    other = chat(more={**options, "allowed_token_ids": ids}).choices[0]
    assert other.message.content == first.message.content
    banned = chat(more={**IDS, **options, "bad_words": [first.message.content]}).choices[0]
    assert extra(banned, "token_ids") != ids
    assert banned.message.content in ("yes", "no")


# ---- prompts


def test_prompt_logprobs_are_those_of_an_echo(client):
    asked = {"model": MODEL, "prompt": "The cat sat on the mat.", "temperature": 0}
    echo = client.completions.create(**asked, max_tokens=0, echo=True, logprobs=5).choices[0].logprobs
    scored = client.completions.create(**asked, max_tokens=2, extra_body={"prompt_logprobs": 5, **IDS}).choices[0]
    ids, entries = extra(scored, "prompt_token_ids"), extra(scored, "prompt_logprobs")
    assert len(ids) == len(entries) == len(echo.tokens)
    assert entries[0] is None and echo.token_logprobs[0] is None
    for one, entry, value, token, top in zip(
        ids[1:], entries[1:], echo.token_logprobs[1:], echo.tokens[1:], echo.top_logprobs[1:]
    ):
        assert next(iter(entry)) == str(one)
        assert entry[str(one)]["logprob"] == value and entry[str(one)]["decoded_token"] == token
        assert len(entry) == len(top)
        ranked = [e["rank"] for e in entry.values() if e["rank"]]
        assert sorted(ranked) == [1, 2, 3, 4, 5]


def test_prompt_logprobs_of_a_chat(chat):
    plain, scored = chat(n=2), chat(n=2, more={"prompt_logprobs": 0})
    entries = extra(scored, "prompt_logprobs")
    assert len(entries) == scored.usage.prompt_tokens
    assert all(len(e) == 1 for e in entries[1:])
    assert scored.choices[0].message.content == plain.choices[0].message.content


def test_continued_message(daemon, chat):
    """Given the beginning of its own greedy answer, the model says the rest of it."""
    whole = chat(more=IDS)
    prompt, ids = extra(whole, "prompt_token_ids"), extra(whole.choices[0], "token_ids")
    more = {**IDS, "continue_final_message": True, "add_generation_prompt": False}
    continued = 0
    for k in range(2, len(ids) - 1):
        text = post(daemon, "/detokenize", {"model": MODEL, "tokens": ids[:k]})[1]["prompt"].strip()
        begun = [*GREEDY["messages"], {"role": "assistant", "content": text}]
        rest = chat(messages=begun, max_tokens=24 - k, more=more)
        if extra(rest, "prompt_token_ids") != prompt + ids[:k]:
            continue  # the tokenizer cuts this beginning at another place
        continued += 1
        assert extra(rest.choices[0], "token_ids") == ids[k:]
        assert text + rest.choices[0].message.content == whole.choices[0].message.content
        echo = chat(messages=begun, max_tokens=24 - k, more={**more, "echo": True})
        assert echo.choices[0].message.content == whole.choices[0].message.content
        if continued == 3:
            break
    assert continued > 0


def test_truncated_prompts(client, chat):
    text = "one two three four five six seven eight nine ten"
    whole = client.completions.create(model=MODEL, prompt=text, max_tokens=1, extra_body=IDS).choices[0]
    ids = extra(whole, "prompt_token_ids")
    for side, expected in ("left", ids[-4:]), ("right", ids[:4]):
        body = {**IDS, "truncate_prompt_tokens": 4, "truncation_side": side}
        cut = client.completions.create(model=MODEL, prompt=text, max_tokens=1, extra_body=body)
        assert extra(cut.choices[0], "prompt_token_ids") == expected
        assert cut.usage.prompt_tokens == 4
    long = [user("word " * 9000)]
    fitted = chat(messages=long, max_tokens=4, more={"truncate_prompt_tokens": -1})
    room = extra(client.models.list().data[0], "max_model_len")
    assert fitted.usage.prompt_tokens == room - 4


def test_no_start_token(client):
    asked = {"model": MODEL, "prompt": "one two", "max_tokens": 1}
    ids = [
        extra(client.completions.create(**asked, extra_body={**IDS, "add_special_tokens": s}).choices[0],
              "prompt_token_ids")
        for s in (True, False)
    ]
    assert ids[0][1:] == ids[1]
