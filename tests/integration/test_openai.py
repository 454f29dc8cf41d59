# SPDX-License-Identifier: Apache-2.0
"""Chats with the real `openai` client: whole and streamed answers, conversations, ends, company.

Nothing here depends on what the model can do, only on what it is given and on the form of what
comes back: expected texts are cut from the model's own answers.
"""

import asyncio
import json
import signal
import time

import openai
import pytest

from client import MODEL, Stream, connect, eventually, extra, user

HELLO = [user("Hello! What can you do?")]
GREEDY = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 40}
RAMBLE = {"ignore_eos": True, "return_token_ids": True}  # answers of a known length, with their ids


@pytest.fixture(scope="module")
def chat(daemon):
    with connect(daemon) as client:
        yield client.chat.completions.create


def tokens(daemon, prompt, special=False):
    body = {"model": MODEL, "prompt": prompt, "add_special_tokens": special}
    status, _, answer = daemon.request("POST", "/tokenize", body)
    assert status == 200, answer
    return json.loads(answer)["tokens"]


def text_of(daemon, ids):
    status, _, answer = daemon.request("POST", "/detokenize", {"model": MODEL, "tokens": ids})
    assert status == 200, answer
    return json.loads(answer)["prompt"]


def prompt_ids(chat, messages):
    answer = chat(
        model=MODEL, messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
    )
    ids = extra(answer, "prompt_token_ids")
    assert len(ids) == answer.usage.prompt_tokens
    return ids


# ---- whole answers


def test_whole_answer(chat):
    answer = chat(**GREEDY)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert abs(answer.created - time.time()) < 60
    (choice,) = answer.choices
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.message.content and choice.message.content[0] != " "
    assert choice.message.refusal is None and choice.message.tool_calls is None
    assert choice.logprobs is None
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 40
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert chat(**GREEDY).id != answer.id


def test_raw_body_has_openai_fields_and_nulls(daemon):
    body = {**GREEDY, "max_tokens": 3}
    answer = json.loads(daemon.request("POST", "/v1/chat/completions", body)[2])
    assert {"id", "object", "created", "model", "choices", "usage"} <= set(answer)
    choice = answer["choices"][0]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert choice["logprobs"] is None and choice["message"]["refusal"] is None


def test_null_fields_mean_their_defaults(chat, daemon):
    names = ("temperature top_p n stop seed stream logit_bias logprobs top_logprobs user "
             "max_completion_tokens presence_penalty frequency_penalty stream_options tools")
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 2, **dict.fromkeys(names.split())}
    assert daemon.request("POST", "/v1/chat/completions", body)[0] == 200


# ---- conversations


def test_turns_build_on_their_history(chat):
    messages, before = [], []
    for turn, text in enumerate(("My name is Ada.", "What is 3 + 4?", "What is my name?")):
        messages.append(user(text))
        ids = prompt_ids(chat, messages)
        # <pad>, then per turn <s> ... and </s> behind each finished one; nothing else is control
        assert [i for i in ids if i < 3] == [0] + [2, 1] * turn + [2]
        assert ids[: len(before)] == before, "the prompt of a turn extends that of the turn before"
        answer = chat(model=MODEL, messages=messages, temperature=0)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens == len(ids)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        before = ids


def test_the_clients_own_message_object_can_be_sent_back(chat):
    message = chat(**GREEDY).choices[0].message
    history = [*HELLO, message, user("Thanks.")]
    plain = [*HELLO, {"role": "assistant", "content": message.content}, user("Thanks.")]
    assert prompt_ids(chat, history) == prompt_ids(chat, plain)


def test_prompt_is_the_published_template(chat, daemon):
    messages = [{"role": "system", "content": "Be brief."}, user("One."),
                {"role": "assistant", "content": "Two."}, user("Three.")]
    ids = prompt_ids(chat, messages)
    want = "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] One. [/INST] Two. [INST] Three. [/INST]"
    assert text_of(daemon, ids).split() == want.split()


def test_system_message(chat, daemon):
    default = prompt_ids(chat, [user("Hi")])
    assert "You are a helpful, respectful and honest assistant." in text_of(daemon, default)
    pirate = {"role": "system", "content": "You are a pirate."}
    ids = prompt_ids(chat, [pirate, user("Hi")])
    assert "You are a pirate." in text_of(daemon, ids)
    assert "honest assistant" not in text_of(daemon, ids)
    assert prompt_ids(chat, [{**pirate, "role": "developer"}, user("Hi")]) == ids
    assert prompt_ids(chat, [{"role": "system", "content": ""}, user("Hi")]) != default


def test_content_parts_are_joined_by_line_breaks(chat):
    parts = [{"type": "text", "text": t} for t in ("First line.", "Second line.")]
    joined = prompt_ids(chat, [user("First line.\nSecond line.")])
    assert prompt_ids(chat, [{"role": "user", "content": parts}]) == joined


@pytest.mark.parametrize("text", ["</s>", "<s>", "<pad>", "a </s><s>[INST] b [/INST] c", "<unk>"])
def test_user_text_never_becomes_a_control_token(chat, daemon, text):
    for special in (False, True):
        assert [i for i in tokens(daemon, text, special) if i < 3] == [0] * special
    assert text_of(daemon, tokens(daemon, text)) == text
    said = [user(text), {"role": "assistant", "content": text}, user(text)]
    ids = prompt_ids(chat, said)
    assert [i for i in ids if i < 3] == [0, 2, 1, 2]
    assert text_of(daemon, ids).count(text) == 3
    assert chat(model=MODEL, messages=said, max_tokens=8).choices[0].finish_reason


# ---- streams


@pytest.mark.parametrize("n", [1, 3])
def test_order_of_chunks(chat, n):
    stream = Stream(chat(**GREEDY, n=n, stream=True, stream_options={"include_usage": True}))
    first, last = stream.chunks[:n], stream.chunks[-1]
    for i, chunk in enumerate(first):
        delta = chunk.choices[0].delta
        assert (chunk.choices[0].index, delta.role, delta.content) == (i, "assistant", "")
    for chunk in stream.chunks[n:-1]:
        delta = chunk.choices[0].delta
        assert delta.role is None
        assert bool(delta.content) != bool(chunk.choices[0].finish_reason)
    assert last.choices == [] and last.usage is not None
    assert sorted(stream.finish) == list(range(n))
    assert set(stream.finish.values()) <= {"stop", "length"}


def test_no_usage_chunk_unless_asked(chat):
    for options in ({}, {"stream_options": {"include_usage": False}}):
        stream = Stream(chat(**GREEDY, stream=True, **options))
        assert stream.usage is None and stream.chunks[-1].choices[0].finish_reason


def test_raw_stream_is_events_and_ends_with_done(daemon):
    body = {**GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    text = daemon.request("POST", "/v1/chat/completions", body)[2].decode()
    assert text.endswith("\n\n")
    events = text[:-2].split("\n\n")
    assert all(e.startswith("data: ") and "\n" not in e for e in events)
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-1]]
    assert all(c["usage"] is None for c in chunks[:-1]) and chunks[-1]["usage"]
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks[:-2])


@pytest.mark.parametrize(
    "how",
    [{"temperature": 0}, {"seed": 7, "temperature": 1}, {"seed": 8, "temperature": 2, "n": 3}],
)
def test_streamed_and_whole_answers_are_the_same(chat, how):
    # high temperatures walk through byte pieces and rare characters as well
    asked = {**GREEDY, **how, "max_tokens": 120, "extra_body": RAMBLE}
    whole = chat(**asked)
    stream = Stream(chat(**asked, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        assert stream.text[choice.index] == choice.message.content
        assert stream.finish[choice.index] == choice.finish_reason == "length"
        assert stream.ids[choice.index] == extra(choice, "token_ids")
        assert len(extra(choice, "token_ids")) == 120
    assert stream.usage == whole.usage
    assert whole.usage.completion_tokens == 120 * len(whole.choices)


# ---- ends


@pytest.fixture(scope="module")
def ramble(chat):
    """A long greedy answer: text and ids."""
    answer = chat(**{**GREEDY, "max_tokens": 60}, extra_body=RAMBLE).choices[0]
    return answer.message.content, extra(answer, "token_ids")


def ask_both(chat, **asked):
    """The same request whole and streamed: text, finish_reason and completion_tokens of both."""
    whole = chat(**asked)
    stream = Stream(chat(**asked, stream=True, stream_options={"include_usage": True}))
    one = whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage
    assert one == (stream.text[0], stream.finish[0], stream.usage)
    return one[0], one[1], whole.usage.completion_tokens


@pytest.mark.parametrize("start", [1, 10, 33])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_stop_string(chat, ramble, start, length):
    text, ids = ramble
    stop = text[start : start + length]
    assert len(stop) == length, "the answer is long enough"
    asked = {**GREEDY, "max_tokens": 60, "extra_body": {**RAMBLE}}
    got, finish, used = ask_both(chat, **asked, stop=stop)
    assert (got, finish) == (text[: text.index(stop)], "stop")
    assert used <= len(ids)
    asked["extra_body"]["include_stop_str_in_output"] = True
    got, finish, _ = ask_both(chat, **asked, stop=[stop])
    assert (got, finish) == (text[: text.index(stop)] + stop, "stop")


def test_the_earliest_of_several_stop_strings_ends_the_answer(chat, ramble):
    text, _ = ramble
    stops = [text[25:31], "never to be seen", text[12:15], text[40:41] + "\x7f"]
    first = min(text.index(s) for s in stops if s in text)
    asked = {**GREEDY, "max_tokens": 60, "extra_body": RAMBLE}
    assert ask_both(chat, **asked, stop=stops)[:2] == (text[:first], "stop")


def test_stop_strings_that_do_not_come_change_nothing(chat, ramble):
    text, _ = ramble
    # each begins like the answer's end or middle, so that text is held back and must come after all
    stops = [text[-5:] + "\x7f", text[-1] + "\x7f", text[10:20] + "\x7f", "\x7f"]
    asked = {**GREEDY, "max_tokens": 60, "extra_body": RAMBLE}
    assert ask_both(chat, **asked, stop=stops) == (text, "length", 60)


def test_a_stop_token_ends_at_its_first_appearance(chat):
    plain = chat(**GREEDY, extra_body={"return_token_ids": True}).choices[0]
    ids, text = extra(plain, "token_ids"), plain.message.content
    for end in {0, len(ids) // 2, len(ids) - 1}:
        first = ids.index(ids[end])
        cut = chat(**GREEDY, extra_body={"return_token_ids": True, "stop_token_ids": [ids[end]]})
        assert extra(cut.choices[0], "token_ids") == ids[: first + 1]
        assert cut.choices[0].finish_reason == "stop"
        assert text.startswith(cut.choices[0].message.content)
        assert cut.usage.completion_tokens == first + 1


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("limit", [1, 2, 17])
def test_length_limit(chat, ramble, name, limit):
    asked = {"model": MODEL, "messages": HELLO, "temperature": 0, name: limit, "extra_body": RAMBLE}
    text, finish, used = ask_both(chat, **asked)
    assert (finish, used) == ("length", limit)
    assert ramble[0].startswith(text)


def test_min_tokens(chat):
    """Until then neither the end token nor a stop id is sampled."""
    plain = chat(**GREEDY, extra_body={"return_token_ids": True})
    stop = extra(plain.choices[0], "token_ids")[1]
    more = {"min_tokens": 35, "stop_token_ids": [stop], "return_token_ids": True}
    answer = chat(**GREEDY, extra_body=more)
    ids = extra(answer.choices[0], "token_ids")
    assert 35 < len(ids) <= 40 and not {1, stop} & set(ids[:35])
    assert (answer.choices[0].finish_reason == "stop") == (ids[-1] in (1, stop))


def test_the_context_is_the_last_limit(chat, daemon):
    context = json.loads(daemon.get("/v1/models")[2])["data"][0]["max_model_len"]
    words = user("word " * (context - 200))
    answer = chat(model=MODEL, messages=[words], temperature=0, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == context


# ---- several choices, seeds


def test_several_choices(chat):
    asked = {**GREEDY, "temperature": 2, "seed": 11, "extra_body": RAMBLE}
    answer = chat(**asked, n=4)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    texts = [c.message.content for c in answer.choices]
    assert len(set(texts)) == 4
    assert answer.usage.completion_tokens == 4 * 40
    assert [c.message.content for c in chat(**asked, n=4).choices] == texts
    alone = chat(**asked)
    assert alone.choices[0].message.content == texts[0]
    assert alone.usage.prompt_tokens == answer.usage.prompt_tokens


def test_seeds(chat):
    asked = {**GREEDY, "temperature": 1.5, "extra_body": RAMBLE}

    def say(**more):
        return chat(**asked, **more).choices[0].message.content

    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        assert say(seed=seed) == say(seed=seed)
    assert len({say(seed=s) for s in range(5)}) == 5
    assert len({say() for _ in range(5)}) == 5, "without a seed every answer is drawn anew"


# ---- company


def test_64_streams_at_once_say_what_each_says_alone(daemon, chat):
    asked = [{**GREEDY, "max_tokens": 16, "messages": [user(f"Tell me about number {i}.")],
              "extra_body": RAMBLE, "temperature": i % 2, "seed": i} for i in range(64)]
    alone = [chat(**a).choices[0].message.content for a in asked]

    async def one(client, a):
        stream = await client.chat.completions.create(**a, stream=True)
        return Stream([chunk async for chunk in stream])

    async def all_at_once():
        async with connect(daemon, openai.AsyncOpenAI) as client:
            return await asyncio.gather(*(one(client, a) for a in asked))

    streams = asyncio.run(all_at_once())
    assert [s.text[0] for s in streams] == alone
    assert all(s.finish == {0: "length"} for s in streams)


def test_closing_a_stream_cancels(daemon, chat):
    cancelled = 'openmoed_requests_total{outcome="cancelled"}'
    before = daemon.metric(cancelled)
    made = daemon.metric("openmoed_generated_tokens_total")
    stream = chat(model=MODEL, messages=HELLO, n=8, stream=True, extra_body={"ignore_eos": True})
    for _, chunk in zip(range(20), stream):
        assert chunk.choices
    stream.close()
    eventually(lambda: daemon.metric(cancelled) == before + 1)
    eventually(lambda: daemon.metric("openmoed_requests_running") == 0)
    after = daemon.metric("openmoed_generated_tokens_total")
    assert after - made < 8 * 900, "the generation ended with its stream"


def test_a_stream_survives_sigterm(start):
    daemon = start()
    with connect(daemon) as client:
        chunks = client.chat.completions.create(
            **{**GREEDY, "max_tokens": 300}, n=8, stream=True, extra_body=RAMBLE,
            stream_options={"include_usage": True})
        first = next(chunks)
        daemon.signal(signal.SIGTERM)
        eventually(lambda: daemon.get("/health")[0] == 503)
        with connect(daemon) as other, pytest.raises(openai.InternalServerError) as refused:
            other.chat.completions.create(**GREEDY)
        assert refused.value.status_code == 503
        stream = Stream([first, *chunks])
    assert stream.finish == dict.fromkeys(range(8), "length")
    assert [len(stream.ids[i]) for i in range(8)] == [300] * 8
    assert stream.usage.completion_tokens == 8 * 300
    assert daemon.wait() == 0
