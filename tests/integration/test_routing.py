# SPDX-License-Identifier: Apache-2.0
"""`return_routing`: what the router did with a request's tokens, against the published code's own
account of the same prompts; and the same figures on /metrics.
"""

import collections
import json
import pathlib

import openai
import pytest

from client import MODEL, connect, extra, user

TINY = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tiny"
CASES = json.loads((TINY / "golden.json").read_text())["cases"]
EXPERTS, LAYERS, TOPK = 8, [1, 3], 2


def ask(client, ids, tokens=1, **more):
    answer = client.completions.create(
        model=MODEL, prompt=ids, temperature=0, max_tokens=tokens,
        extra_body={"return_routing": True, "ignore_eos": True, **more})
    return extra(answer, "openmoed")


def golden_picks(case, only_dropped):
    """[layers][experts] from the golden routing: every pick, or those not kept."""
    table = []
    for layer in case["routing"]:
        counts = collections.Counter()
        for experts, kept in zip(layer["experts"], layer["kept"]):
            counts.update(e for e, k in zip(experts, kept) if not (only_dropped and k))
        table.append([counts[e] for e in range(EXPERTS)])
    return table


@pytest.mark.parametrize("mode", ["dropless", "reference"])
def test_golden(start, mode):
    daemon = start("--dtype", "f32", "--expert-capacity", mode, model=str(TINY))
    with connect(daemon) as client:
        for case in (c for c in CASES if c["mode"] == mode):
            got = ask(client, case["input_ids"])
            n = len(case["input_ids"])
            routing, dropped = got["routing"], got["dropped"]
            assert (routing["layers"], routing["experts"], routing["tokens"]) == (LAYERS, EXPERTS, n)
            assert routing["picks"] == golden_picks(case, False)
            assert dropped["by_expert"] == golden_picks(case, True)
            assert dropped["by_layer"] == [sum(row) for row in dropped["by_expert"]]
            assert dropped["total"] == sum(dropped["by_layer"])
            assert dropped["picks"] == n * TOPK * len(LAYERS)
            for list_name, first in (("by_position", 0), ("by_turn", 1)):
                buckets = dropped[list_name]
                assert buckets[0]["first"] == first
                assert sum(b["picks"] for b in buckets) == dropped["picks"]
                assert sum(b["dropped"] for b in buckets) == dropped["total"]
            assert [b["last"] for b in dropped["by_position"]] == [63, 127, 255][: 1 + n // 65]
            assert dropped["by_turn"][0]["picks"] == dropped["picks"]
        assert (dropped["total"] > 0) == (mode == "reference")


def test_drops_grow_towards_the_end(start):
    """Isolated mode: the budget of 32 tokens is gone long before a prompt of 200 is over."""
    daemon = start("--dtype", "f32", "--expert-capacity", "isolated", "--capacity-length", "32",
                   model=str(TINY))
    case = next(c for c in CASES if len(c["input_ids"]) == 200)
    with connect(daemon) as client:
        first = ask(client, case["input_ids"])
        shares = [b["dropped"] / b["picks"] for b in first["dropped"]["by_position"]]
        assert shares == sorted(shares) and shares[-1] > 2 * shares[0]
        # Counting is of the whole prompt, so the cache is left aside, and is not in the way.
        assert ask(client, case["input_ids"]) == first


def test_turns_of_a_chat(daemon):
    """Each turn's tokens are counted as that turn's; the reply belongs to the last one."""
    talk = [user("Hello!"), {"role": "assistant", "content": "Hi."}, user("How are you?"),
            {"role": "assistant", "content": "Well."}, user("Say one word.")]
    with connect(daemon) as client:
        def create(messages):
            return client.chat.completions.create(
                model=MODEL, messages=messages, temperature=0, max_tokens=4,
                extra_body={"return_routing": True, "ignore_eos": True})
        by_turn = extra(create(talk), "openmoed")["dropped"]["by_turn"]
        assert [(b["first"], b["last"]) for b in by_turn] == [(1, 1), (2, 2), (3, 3)]
        # The first turn of the long chat is what a chat of its first message has before its reply,
        # and the reply the client sent back with its end.
        alone = create(talk[:1])
        tokens = extra(alone, "openmoed")["routing"]["tokens"]
        assert tokens == alone.usage.prompt_tokens + 3
        layers = len(extra(alone, "openmoed")["routing"]["layers"])
        per_token = layers * TOPK
        assert by_turn[0]["picks"] > alone.usage.prompt_tokens * per_token
        assert sum(b["picks"] for b in by_turn) == per_token * extra(
            create(talk), "openmoed")["routing"]["tokens"]


def test_streams_carry_it_in_the_last_chunk(daemon):
    for usage in (False, True):
        with connect(daemon) as client:
            more = {"stream_options": {"include_usage": True}} if usage else {}
            chunks = list(client.chat.completions.create(
                model=MODEL, messages=[user("Hello!")], max_tokens=4, stream=True,
                extra_body={"return_routing": True}, **more))
        *rest, last = chunks
        assert all("openmoed" not in (c.model_extra or {}) for c in rest)
        assert last.choices == [] and (last.usage is not None) == usage
        assert extra(last, "openmoed")["routing"]["tokens"] > 4


def test_several_choices_are_counted_together(daemon):
    with connect(daemon) as client:
        one, two = (extra(client.chat.completions.create(
            model=MODEL, messages=[user("Hello!")], max_tokens=4, n=n, temperature=0,
            extra_body={"return_routing": True, "ignore_eos": True}), "openmoed") for n in (1, 2))
    assert two["routing"]["tokens"] == 2 * one["routing"]["tokens"]
    assert two["routing"]["picks"] == [[2 * p for p in row] for row in one["routing"]["picks"]]


def test_only_when_asked(daemon):
    with connect(daemon) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[user("Hello!")], max_tokens=1,
            extra_body={"return_routing": False})
        assert "openmoed" not in answer.model_extra
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=MODEL, messages=[user("Hello!")], max_tokens=1,
                                           extra_body={"return_routing": "yes"})
        assert refused.value.param == "return_routing"


def test_metrics_agree(start):
    daemon = start("--dtype", "f32", model=str(TINY))
    with connect(daemon) as client:
        got = ask(client, CASES[-1]["input_ids"], tokens=10)
    picks = got["routing"]["picks"]
    for l, layer in enumerate(LAYERS):
        for e in range(EXPERTS):
            name = f'openmoed_expert_picks_total{{layer="{layer}",expert="{e}"}}'
            assert daemon.metric(name) == picks[l][e]
        judged = daemon.metric(f'openmoed_routing_judged_tokens_total{{layer="{layer}"}}')
        known = daemon.metric(f'openmoed_routing_known_tokens_total{{layer="{layer}"}}')
        first = daemon.metric(f'openmoed_routing_first_hits_total{{layer="{layer}"}}')
        top = daemon.metric(f'openmoed_routing_top_hits_total{{layer="{layer}"}}')
        assert judged == got["routing"]["tokens"] >= known >= first
        assert first <= top <= TOPK * known
        busiest = daemon.metric(f'openmoed_expert_largest_step_picks_total{{layer="{layer}"}}')
        assert max(picks[l]) <= busiest <= sum(picks[l])
    for bucket in got["dropped"]["by_position"]:
        name = f'openmoed_position_picks_total{{positions="{bucket["first"]}-{bucket["last"]}"}}'
        assert daemon.metric(name) == bucket["picks"]
    assert daemon.metric('openmoed_turn_picks_total{turns="1"}') == got["dropped"]["picks"]


def test_the_table_survives_a_restart(start, tmp_path):
    """What was learned is there after a restart: the first request's tokens are known."""
    flags = ("--dtype", "f32", "--routing-table", str(tmp_path / "table"))
    known = []
    for _ in range(2):
        daemon = start(*flags, model=str(TINY))
        with connect(daemon) as client:
            ask(client, CASES[-1]["input_ids"])
        known.append(daemon.metric('openmoed_routing_known_tokens_total{layer="1"}'))
        daemon.stop()
    assert 0 < known[0] < 200 == known[1]


def test_limit_of_tokens_per_expert_changes_no_answer(start):
    flood = [2] * 240
    answers, steps = [], []
    for limit in ("0", "16"):
        daemon = start("--dtype", "f32", "--max-expert-tokens", limit, model=str(TINY))
        with connect(daemon) as client:
            for turn in range(2):  # the second one is foretold by the first
                answer = client.completions.create(
                    model=MODEL, prompt=[flood, flood[:150], CASES[-1]["input_ids"]],
                    temperature=0, max_tokens=8, logprobs=3,
                    extra_body={"ignore_eos": True, "cache_salt": str(turn)})
            answers.append([(extra(c, "token_ids"), c.logprobs.token_logprobs)
                            for c in answer.choices])
        steps.append(daemon.metric("openmoed_step_seconds_count"))
    assert answers[0] == answers[1]
    assert steps[1] > steps[0] + 10  # 390 rows of one token, 16 at a time
