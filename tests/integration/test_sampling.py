# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of chats, and every sampling field judged by them.

The daemon reports the model's own distribution, before temperature, penalties and filters. With
the 20 likeliest tokens of each position at hand a test can work out what a field must do, whatever
the model is.
"""

import math

import pytest

from client import MODEL, Stream, connect, extra, user

ASK = {"model": MODEL, "messages": [user("Tell me something.")], "max_tokens": 40,
       "logprobs": True, "top_logprobs": 20}
IDS = {"ignore_eos": True, "return_token_ids": True}
SLACK = 1e-4  # of log-probabilities printed with 9 digits and summed here


@pytest.fixture(scope="module")
def chat(daemon):
    with connect(daemon) as client:
        yield client.chat.completions.create


class Answer:
    def __init__(self, answer):
        choice = answer.choices[0]
        self.text = choice.message.content
        self.finish = choice.finish_reason
        self.ids = extra(choice, "token_ids")
        self.entries = choice.logprobs.content
        assert choice.logprobs.refusal is None


@pytest.fixture(scope="module")
def ask(chat):
    def asked(temperature=0, seed=1, body=None, **more):
        body = {**IDS, **(body or {})}
        return Answer(chat(**ASK, temperature=temperature, seed=seed, extra_body=body, **more))

    return asked


@pytest.fixture(scope="module")
def greedy(ask):
    return ask()


def name(entry):
    return entry.token, tuple(entry.bytes or ())


# ---- log-probabilities


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_logprobs_are_a_distribution(ask, temperature):
    answer = ask(temperature)
    assert len(answer.entries) == len(answer.ids) == 40
    for entry in answer.entries:
        top = entry.top_logprobs
        values = [t.logprob for t in top]
        assert len(top) == 20 and len({name(t) for t in top}) == 20
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + SLACK
        assert entry.logprob <= values[0] <= 0
        same = [t.logprob for t in top if name(t) == name(entry)]
        if same:
            assert same == [entry.logprob]
        else:
            assert entry.logprob <= values[-1]
        if temperature == 0:
            assert entry.logprob == values[0]


@pytest.mark.parametrize("temperature", [0, 2])
def test_bytes_add_up_to_the_text(ask, temperature):
    answer = ask(temperature)
    joined = b"".join(bytes(e.bytes or ()) for e in answer.entries)
    # a reply is shown without the space in front of its first word
    assert joined.removeprefix(b" ").decode(errors="replace") == answer.text
    for entry in answer.entries:
        if entry.bytes is None:
            assert entry.token.startswith("<")
        elif all(b < 128 for b in entry.bytes):
            assert entry.token == bytes(entry.bytes).decode()


def test_top_logprobs_may_be_none_or_few(chat):
    asked = {**ASK, "temperature": 0, "max_tokens": 5}
    by_count = {}
    for n in (0, 1, 5):
        asked["top_logprobs"] = n
        by_count[n] = chat(**asked).choices[0].logprobs.content
        assert [len(e.top_logprobs) for e in by_count[n]] == [n] * len(by_count[n])
    assert [e.logprob for e in by_count[0]] == [e.logprob for e in by_count[5]]
    del asked["top_logprobs"]
    assert [e.top_logprobs for e in chat(**asked).choices[0].logprobs.content] == [[]] * 5
    del asked["logprobs"]
    assert chat(**asked).choices[0].logprobs is None


@pytest.mark.parametrize("stop", [None, "e", " a"])
def test_streamed_logprobs_are_those_of_the_whole_answer(chat, stop):
    asked = {**ASK, "temperature": 1, "seed": 3, "stop": stop, "extra_body": IDS}
    whole = chat(**asked).choices[0]
    stream = Stream(chat(**asked, stream=True))
    streamed = [entry for part in stream.logprobs.get(0, []) for entry in part.content]
    assert streamed == whole.logprobs.content
    assert stream.text[0] == whole.message.content
    # a chunk of text comes with the tokens that it is made of
    for chunk in stream.chunks:
        choice = chunk.choices[0]
        assert not choice.delta.content or choice.logprobs.content


def test_logprobs_are_the_models_own(ask, greedy):
    """Neither temperature nor a bias nor a filter shows in them."""
    first = greedy.entries[0].top_logprobs
    forced = greedy.ids[-1]
    for more in ({"temperature": 2}, {"logit_bias": {str(forced): 100}}, {"top_p": 0.1},
                 {"presence_penalty": 2}, {"body": {"top_k": 2, "min_p": 0.5}}):
        assert ask(**more).entries[0].top_logprobs == first


# ---- bias


def test_logit_bias_bans(ask, greedy):
    banned = {str(i): -100 for i in set(greedy.ids)}
    assert not set(ask(logit_bias=banned).ids) & set(greedy.ids)


def test_logit_bias_forces(ask, greedy):
    forced = max(set(greedy.ids))
    for temperature in (0, 1):
        answer = ask(temperature, logit_bias={str(forced): 100})
        assert answer.ids == [forced] * 40


# ---- penalties: greedy answers worked out from the log-probabilities


def replay(answer, presence, frequency, ids_by_name):
    """The token that a greedy choice must take at every position. None where the 20 likeliest do
    not tell: a token outside them might win, or two are as good as equal."""
    counts, out = {}, []
    for entry, taken in zip(answer.entries, answer.ids):
        scored = []
        for top in entry.top_logprobs:
            seen = counts.get(ids_by_name.get(name(top)), 0)
            scored.append((top.logprob - presence * (seen > 0) - frequency * seen, name(top)))
        scored.sort(reverse=True)
        listed = {ids_by_name.get(name(t)) for t in entry.top_logprobs}
        bonus = max((-presence - frequency * n for i, n in counts.items() if i not in listed),
                    default=0)
        rival = max(scored[1][0], entry.top_logprobs[-1].logprob + max(0, bonus))
        out.append(scored[0][1] if scored[0][0] > rival + SLACK else None)
        counts[taken] = counts.get(taken, 0) + 1
    return out


@pytest.mark.parametrize("presence, frequency", [(2, 0), (0, 2), (1.5, 0.5), (-2, 0), (0, -2)])
def test_penalties(ask, presence, frequency):
    answer = ask(presence_penalty=presence, frequency_penalty=frequency)
    ids_by_name = {name(e): i for e, i in zip(answer.entries, answer.ids)}
    assert len(ids_by_name) == len(set(answer.ids)), "every name stands for one id"
    want = replay(answer, presence, frequency, ids_by_name)
    got = [name(e) for e in answer.entries]
    assert [g for g, w in zip(got, want) if w] == [w for w in want if w]
    assert sum(w is not None for w in want) >= 20, "most positions can be judged"


def test_frequency_penalty_grows_with_every_repetition(ask, greedy):
    forced = max(set(greedy.ids))
    answer = ask(logit_bias={str(forced): 30}, frequency_penalty=2)
    # each use costs 2 of a lead of at most 30
    assert 0 < answer.ids.count(forced) <= 16
    again = ask(logit_bias={str(forced): 30}, presence_penalty=2)
    assert again.ids.count(forced) > answer.ids.count(forced)


def test_repetition_penalty(ask, greedy):
    assert ask(body={"repetition_penalty": 1}).ids == greedy.ids
    strict = ask(body={"repetition_penalty": 100}).ids
    assert len(set(strict)) > len(set(greedy.ids))


# ---- filters: no token outside what a filter leaves is ever drawn


@pytest.mark.parametrize(
    "more", [{"top_p": 0}, {"top_p": 1e-6}, {"body": {"top_k": 1}}, {"body": {"min_p": 1}}]
)
def test_a_filter_that_leaves_one_token_is_greedy(ask, greedy, more):
    assert ask(2, **more).ids == greedy.ids


@pytest.mark.parametrize("k", [2, 5])
def test_top_k(ask, k):
    ranks = []
    for seed in range(3):
        for entry in ask(2, seed=seed, body={"top_k": k}).entries:
            ranks.append(sum(t.logprob > entry.logprob for t in entry.top_logprobs))
    assert max(ranks) == k - 1, "all of the k are drawn at times, no other ever"


def test_top_p(ask):
    above = []
    for seed in range(3):
        for entry in ask(1, seed=seed, top_p=0.8).entries:
            likelier = (t.logprob for t in entry.top_logprobs if t.logprob > entry.logprob)
            above.append(sum(map(math.exp, likelier)))
    assert max(above) < 0.8 + SLACK


def test_min_p(ask):
    for seed in range(3):
        for entry in ask(1, seed=seed, body={"min_p": 0.2}).entries:
            assert entry.logprob >= entry.top_logprobs[0].logprob + math.log(0.2) - SLACK


def test_sampling_follows_the_distribution(chat):
    """The first token of many answers: each of the likely ones comes as often as it should."""
    one = {**ASK, "max_tokens": 1, "top_logprobs": 3, "extra_body": IDS}
    answers = [chat(**one, temperature=2, n=16, seed=s) for s in range(12)]
    entries = [c.logprobs.content[0] for a in answers for c in a.choices]
    top = entries[0].top_logprobs
    # at temperature 2 a token's weight is the root of its probability; the top 3 against each other
    weights = [math.exp(t.logprob / 2) for t in top]
    drawn = [sum(name(e) == name(t) for e in entries) for t in top]
    total = sum(drawn)
    for weight, count in zip(weights, drawn):
        p = weight / sum(weights)
        assert abs(count - total * p) <= 5 * math.sqrt(total * p * (1 - p)) + 1
