# SPDX-License-Identifier: Apache-2.0
"""/v1/completions with the real `openai` client.

On tests/golden/tiny, a folder without a tokenizer: prompts and answers as token ids, against the
numbers of the published code in golden.json. On the demo model: prompts as text, echo.
"""

import json
import math
import pathlib

import openai
import pytest

from client import MODEL, Stream, connect, extra

TINY = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tiny"
GOLDEN = json.loads((TINY / "golden.json").read_text())
TOLERANCE = 1e-4
TEXT = "Hello! My name is Ada, and I like tea."


def cases(mode):
    return [c for c in GOLDEN["cases"] if c["mode"] == mode]


def open_client(start, *flags, folder=TINY):
    return connect(start("--dtype", "f32", *flags, model=str(folder))).completions.create


@pytest.fixture(scope="module")
def complete(daemon):
    with connect(daemon) as client:
        yield client.completions.create


def greedy(create, prompt, tokens, **more):
    return create(model=MODEL, prompt=prompt, temperature=0, max_tokens=tokens,
                  extra_body={"ignore_eos": True}, **more)


def close(got, want):
    assert len(got) == len(want)
    assert max((abs(a - b) for a, b in zip(got, want)), default=0) <= TOLERANCE


# ---- against the published code


@pytest.mark.parametrize("folder", [".", "bf16", "torch"])
@pytest.mark.parametrize("mode", ["dropless", "reference"])
def test_golden(start, folder, mode):
    create = open_client(start, "--expert-capacity", mode, folder=TINY / folder)
    for case in cases(mode):
        ids = case["input_ids"]
        answer = greedy(create, ids, 24, logprobs=5)
        (choice,) = answer.choices
        assert extra(choice, "token_ids") == case["greedy"]
        assert extra(choice, "prompt_token_ids") == ids
        assert (choice.finish_reason, choice.text) == ("length", "")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 24)

        logits = case["last_logits"]
        total = max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits))
        want = sorted((x - total for x in logits), reverse=True)[:5]
        close(list(choice.logprobs.top_logprobs[0].values()), want)

        echo = greedy(create, ids, 0, logprobs=0, echo=True).choices[0]
        assert echo.logprobs.token_logprobs[0] is None
        close(echo.logprobs.token_logprobs[1:], case["logprob_of_inputs"])
        assert extra(echo, "token_ids") == [] and echo.finish_reason == "length"


@pytest.mark.parametrize("rows", [4, 16, 512])
def test_golden_in_company_and_in_chunks(start, rows):
    """The whole list as one request, prompts cut into pieces: the same answers as alone."""
    flags = ["--max-num-batched-tokens", str(rows), "--max-num-seqs", "4"]
    create = open_client(start, *flags)
    wanted = cases("dropless") * 3
    answer = greedy(create, [c["input_ids"] for c in wanted], 24, echo=True, logprobs=0)
    assert [c.index for c in answer.choices] == list(range(len(wanted)))
    for case, choice in zip(wanted, answer.choices):
        assert extra(choice, "token_ids") == case["greedy"]
        scores = choice.logprobs.token_logprobs
        close(scores[1 : len(case["input_ids"])], case["logprob_of_inputs"])
        assert len(scores) == len(case["input_ids"]) + 24
    assert answer.usage.prompt_tokens == sum(len(c["input_ids"]) for c in wanted)
    assert answer.usage.completion_tokens == 24 * len(wanted)


def test_without_a_tokenizer(start):
    daemon = start(model=str(TINY))
    client = connect(daemon)
    ids = GOLDEN["cases"][2]["input_ids"]
    stream = Stream(client.completions.create(
        model=MODEL, prompt=ids, temperature=0, max_tokens=24, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True}))
    assert stream.ids[0] == GOLDEN["cases"][2]["greedy"]
    assert stream.usage.completion_tokens == 24

    def refused(param, call, **more):
        with pytest.raises(openai.BadRequestError) as e:
            call(model=MODEL, **more)
        assert (e.value.code, e.value.param) == ("tokenizer_missing", param)
        assert "tokenizer" in e.value.message

    chat = client.chat.completions.create
    messages = [{"role": "user", "content": "Hello"}]
    refused("messages", chat, messages=messages)
    refused("messages", chat, messages=messages, stream=True)
    refused("prompt", client.completions.create, prompt="Hello")
    refused("prompt[0]", client.completions.create, prompt=["Hello"])
    refused("stop", client.completions.create, prompt=ids, stop="x")
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})):
        status, _, answer = daemon.request("POST", path, body)
        assert (status, json.loads(answer)["error"]["code"]) == (400, "tokenizer_missing")


def test_context_limits(start):
    create = open_client(start, "--max-model-len", "32")
    with pytest.raises(openai.BadRequestError) as e:
        greedy(create, [5] * 33, 1)
    assert (e.value.code, e.value.param) == ("context_length_exceeded", "prompt")
    assert "32" in e.value.message and "33" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        greedy(create, [5] * 16, 17)
    assert e.value.code == "context_length_exceeded"
    assert greedy(create, [5] * 16, 16).usage.total_tokens == 32
    assert greedy(create, [5] * 31, 1).usage.total_tokens == 32
    full = greedy(create, [5] * 32, 0, echo=True, logprobs=0).choices[0]
    assert len(full.logprobs.token_logprobs) == 32


# ---- text


def test_text_prompt(complete):
    answer = complete(model=MODEL, prompt=TEXT, temperature=0)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    (choice,) = answer.choices
    assert (choice.index, choice.logprobs) == (0, None)
    assert answer.usage.completion_tokens <= 16, "OpenAI's default"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert not choice.text.startswith(TEXT)


def test_text_and_its_ids_are_the_same_prompt(complete, daemon):
    body = {"model": MODEL, "prompt": TEXT}
    ids = json.loads(daemon.request("POST", "/tokenize", body)[2])["tokens"]
    assert ids[0] == 0, "the start token stands in front unless add_special_tokens is false"
    by_text, by_ids = greedy(complete, TEXT, 30), greedy(complete, ids, 30)
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert by_text.usage == by_ids.usage
    assert by_text.usage.prompt_tokens == len(ids)


def test_lists_of_prompts(complete):
    prompts = ["One.", "Two and two", "Three, please"]
    answer = greedy(complete, prompts, 12, n=2, seed=1)
    assert [c.index for c in answer.choices] == list(range(6))
    alone = [greedy(complete, p, 12) for p in prompts]
    for k, one in enumerate(alone):
        texts = {answer.choices[2 * k].text, answer.choices[2 * k + 1].text}
        assert texts == {one.choices[0].text}
    assert answer.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone)
    assert answer.usage.completion_tokens == 6 * 12
    ids = [extra(complete(model=MODEL, prompt=p, extra_body={"return_token_ids": True}).choices[0],
                 "prompt_token_ids") for p in prompts]
    assert [c.text for c in greedy(complete, ids, 12).choices] == [a.choices[0].text for a in alone]


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_and_whole_completions_are_the_same(complete, echo):
    asked = dict(model=MODEL, prompt=[TEXT, "Count to"], max_tokens=40, echo=echo, logprobs=2,
                 seed=5, n=2, extra_body={"ignore_eos": True, "return_token_ids": True})
    whole = complete(**asked)
    stream = Stream(complete(**asked, stream=True, stream_options={"include_usage": True}))
    assert stream.usage == whole.usage
    for choice in whole.choices:
        i, lp = choice.index, choice.logprobs
        assert stream.text[i] == choice.text
        assert stream.finish[i] == choice.finish_reason == "length"
        assert stream.ids[i] == extra(choice, "token_ids")
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [x for part in stream.logprobs[i] for x in getattr(part, field)]
            assert joined == getattr(lp, field)
        sizes = {len(lp.tokens), len(lp.token_logprobs), len(lp.top_logprobs), len(lp.text_offset)}
        assert len(sizes) == 1


def test_echo_with_logprobs_covers_the_prompt(complete):
    ask = dict(temperature=0, model=MODEL, max_tokens=10, logprobs=3,
               extra_body={"return_token_ids": True, "ignore_eos": True})
    plain = complete(**ask, prompt=TEXT).choices[0]
    echo = complete(**ask, prompt=TEXT, echo=True).choices[0]
    prompt = extra(echo, "prompt_token_ids")
    assert echo.text == TEXT + plain.text
    assert extra(echo, "token_ids") == extra(plain, "token_ids")
    lp, n = echo.logprobs, len(prompt)
    assert len(lp.tokens) == n + 10
    assert lp.token_logprobs[0] is None and lp.top_logprobs[0] is None
    assert all(v <= 0 for v in lp.token_logprobs[1:])
    assert lp.tokens[n:] == plain.logprobs.tokens
    assert lp.token_logprobs[n:] == plain.logprobs.token_logprobs
    assert [o - len(TEXT) for o in lp.text_offset[n:]] == plain.logprobs.text_offset
    # offsets lead into the text; control tokens have no text
    assert lp.tokens[0] == "<pad>"
    for token, at in zip(lp.tokens[1:], lp.text_offset[1:]):
        if token in ("<pad>", "</s>", "<s>"):
            continue
        assert echo.text[at:].startswith(token) or (at == 0 and echo.text.startswith(token[1:]))
    for top, value, token in zip(lp.top_logprobs[1:], lp.token_logprobs[1:], lp.tokens[1:]):
        assert top[token] == value and 3 <= len(top) <= 4
        assert sum(map(math.exp, top.values())) <= 1 + TOLERANCE


def test_echo_alone_scores_a_text(complete):
    scored = complete(model=MODEL, prompt=[TEXT, "tea."], max_tokens=0, echo=True, logprobs=0)
    assert [c.text for c in scored.choices] == [TEXT, "tea."]
    assert scored.usage.completion_tokens == 0
    lp = scored.choices[0].logprobs
    assert lp.top_logprobs is None
    # each token's score is what the model says of it after the tokens before
    ids = extra(complete(model=MODEL, prompt=TEXT, max_tokens=1,
                         extra_body={"return_token_ids": True}).choices[0], "prompt_token_ids")
    for at in (3, len(ids) - 1):
        forced = complete(model=MODEL, prompt=ids[:at], max_tokens=1, logprobs=0, temperature=0,
                          logit_bias={str(ids[at]): 100})
        close(forced.choices[0].logprobs.token_logprobs, [lp.token_logprobs[at]])


def test_stop_is_never_part_of_a_completion(complete):
    text = greedy(complete, TEXT, 40).choices[0].text
    stop = text[10:14]
    cut = greedy(complete, TEXT, 40, stop=[stop])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    echoed = greedy(complete, TEXT + stop, 40, stop=[stop], echo=True).choices[0].text
    assert echoed.startswith(TEXT + stop), "a stop string in the prompt ends nothing"


# ---- /tokenize and /detokenize


@pytest.mark.parametrize("text", [
    "Hello world", "Grüße aus Köln, façade, naïve", "Привет, мир!", "你好,世界", "こんにちは世界",
    "안녕하세요", "مرحبا بالعالم", "नमस्ते दुनिया", "שלום עולם", "γειά σου Κόσμε", "🎉 tea 🍵",
    "👩‍👩‍👧‍👦 family", "a\tb", "1 + 2 = 3; x*y != {z}", "\\ \" ' ` ~ | </s> <pad>", "e\u0301"])
def test_tokenize_round_trip(daemon, text):
    status, _, body = daemon.request("POST", "/tokenize", {
        "model": MODEL, "prompt": text, "add_special_tokens": False})
    assert status == 200
    answer = json.loads(body)
    ids = answer["tokens"]
    assert answer["count"] == len(ids) > 0 and min(ids) > 3
    with_start = daemon.request("POST", "/tokenize", {"model": MODEL, "prompt": text})[2]
    assert json.loads(with_start)["tokens"] == [0] + ids
    for tokens in (ids, [0] + ids + [1]):
        status, _, body = daemon.request("POST", "/detokenize", {"model": MODEL, "tokens": tokens})
        # the tokenizer normalises: composed characters, white space as spaces
        want = text.replace("\t", " ").replace("e\u0301", "\u00e9")
        assert (status, json.loads(body)) == (200, {"prompt": want})


def test_tokenize_empty(daemon):
    body = {"model": MODEL, "prompt": "", "add_special_tokens": False}
    assert json.loads(daemon.request("POST", "/tokenize", body)[2])["tokens"] == []
    assert json.loads(daemon.request("POST", "/detokenize", {"tokens": []})[2]) == {"prompt": ""}


@pytest.mark.parametrize("path, body, param", [
    ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": 5}, "prompt"),
    ("/tokenize", {"prompt": "x", "add_special_tokens": 1}, "add_special_tokens"),
    ("/tokenize", {"prompt": "x", "other": 1}, "other"), ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": "x"}, "tokens"), ("/detokenize", {"tokens": [5, -1]}, "tokens[1]"),
    ("/detokenize", {"tokens": [10**6]}, "tokens[0]"),
    ("/detokenize", {"tokens": [1.5]}, "tokens[0]"),
])
def test_tokenize_refuses(daemon, path, body, param):
    status, _, answer = daemon.request("POST", path, {"model": MODEL, **body})
    assert (status, json.loads(answer)["error"]["param"]) == (400, param)


@pytest.mark.parametrize("field", ["messages", "tools", "chat_template", "add_generation_prompt"])
def test_tokenize_refuses_chats_by_name(daemon, field):
    """What vLLM's /tokenize takes instead of a prompt."""
    answer = daemon.request("POST", "/tokenize", {"model": MODEL, field: [[1]]})
    error = json.loads(answer[2])["error"]
    assert (answer[0], error["code"], error["param"]) == (400, "unsupported_parameter", field)
