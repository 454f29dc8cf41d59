# SPDX-License-Identifier: Apache-2.0
"""/metrics as a strict reader of the Prometheus text format sees it, and what its figures say."""

import math
import re

import pytest

from client import MODEL, connect, eventually, user

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)")
TYPES = ("counter", "gauge", "histogram")
ASK = {"model": MODEL, "messages": [user("Hello!")], "max_tokens": 20, "temperature": 0}


class Page:
    """families: name -> (type, {(sample name, labels): value}). Fails on what is not allowed."""

    def __init__(self, text):
        assert text.endswith("\n") and "\r" not in text
        self.families, self.current, helped = {}, None, None
        for line in text[:-1].split("\n"):
            if line.startswith("# HELP "):
                helped = re.fullmatch(rf"# HELP ({NAME}) (\S.*)", line).group(1)
                assert helped not in self.families, f"{helped} stands twice"
            elif line.startswith("# TYPE "):
                name, kind = re.fullmatch(rf"# TYPE ({NAME}) (\w+)", line).groups()
                assert name == helped and kind in TYPES
                self.families[name] = (kind, {})
                self.current = name
            else:
                self._sample(line)
        for name, (kind, samples) in self.families.items():
            if kind == "histogram":
                check_histogram(name, samples)

    def _sample(self, line):
        found = SAMPLE.fullmatch(line)
        assert found, f"no sample: {line!r}"
        name, labels, value = found.group(1), found.group(2) or "", float(found.group(3))
        kind, samples = self.families[self.current]
        suffix = name.removeprefix(self.current)
        assert suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",)), line
        assert (name, labels) not in samples, f"twice: {line}"
        assert not math.isnan(value) and (kind == "gauge" or value >= 0)
        assert kind != "counter" or name.endswith("_total")
        samples[name, labels] = value

    def value(self, name, labels=""):
        for _, samples in self.families.values():
            if (name, labels) in samples:
                return samples[name, labels]
        raise KeyError(f"{name}{{{labels}}}")

    def growing(self):
        """Every series that may never fall."""
        return {key: value for kind, samples in self.families.values() if kind != "gauge"
                for key, value in samples.items()}


def check_histogram(name, samples):
    bounds, counts = [], []
    for (sample, labels), value in samples.items():
        if sample == name + "_bucket":
            bounds.append(float(re.fullmatch(r'le="([^"]+)"', labels).group(1)))
            counts.append(value)
    assert bounds == sorted(set(bounds)) and bounds[-1] == math.inf and len(bounds) > 5
    assert counts == sorted(counts), "buckets are cumulative"
    assert counts[-1] == samples[name + "_count", ""]
    low = sum((b - a) * l for a, b, l in zip([0, *counts], counts, [0, *bounds]))
    high = sum((b - a) * h for a, b, h in zip([0, *counts], counts, bounds) if b > a)
    assert low * 0.999 <= samples[name + "_sum", ""] <= high * 1.001, "the sum fits the buckets"


@pytest.fixture(scope="module")
def chat(daemon):
    with connect(daemon) as client:
        yield client.chat.completions.create


def page(daemon):
    status, _, body = daemon.get("/metrics")
    assert status == 200
    return Page(body.decode())


def quiet(daemon):
    eventually(lambda: daemon.metric("openmoed_requests_running") == 0)
    eventually(lambda: daemon.metric("openmoed_requests_waiting") == 0)
    return page(daemon)


def test_families(daemon):
    kinds = {name: kind for name, (kind, _) in page(daemon).families.items()}
    want = {"requests_running": "gauge", "requests_waiting": "gauge", "requests_total": "counter",
            "prompt_tokens_total": "counter", "generated_tokens_total": "counter",
            "time_to_first_token_seconds": "histogram", "inter_token_seconds": "histogram",
            "request_duration_seconds": "histogram", "queue_seconds": "histogram",
            "time_per_output_token_seconds": "histogram", "step_seconds": "histogram",
            "request_prompt_tokens": "histogram", "request_generated_tokens": "histogram",
            "expert_dropped_picks_total": "counter", "build_info": "gauge"}
    assert {f"openmoed_{k}": v for k, v in want.items()}.items() <= kinds.items()
    labels = page(daemon).families["openmoed_requests_total"][1]
    outcomes = {re.fullmatch(r'outcome="(\w+)"', key[1]).group(1) for key in labels}
    assert {"stop", "length", "cancelled", "error", "rejected"} == outcomes


def test_counters_only_grow(daemon, chat):
    before = quiet(daemon).growing()
    for asked in ({}, {"n": 3}, {"seed": 1, "temperature": 1}):
        list(chat(**{**ASK, **asked}, stream=True))
        after = page(daemon).growing()
        assert before.keys() <= after.keys()
        assert all(after[key] >= value for key, value in before.items())
        before = after


def computed(usage):
    """Prompt tokens that did not come from the prefix cache."""
    return usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens


def test_totals_are_the_sums_of_usage(daemon, chat):
    before = quiet(daemon)
    prompt = generated = firsts = asked = several = 0
    for i in range(6):
        answer = chat(**{**ASK, "messages": [user("word " * (i * 60))], "max_tokens": 1 + 7 * i},
                      extra_body={"ignore_eos": i % 2 == 0})
        prompt += computed(answer.usage)
        asked += answer.usage.prompt_tokens
        several += answer.usage.completion_tokens > 1
        generated += answer.usage.completion_tokens
        firsts += 1
    stream = chat(**ASK, stream=True, stream_options={"include_usage": True})
    usage = list(stream)[-1].usage
    prompt += computed(usage)
    asked += usage.prompt_tokens
    several += usage.completion_tokens > 1
    generated += usage.completion_tokens
    firsts += 1
    after = quiet(daemon)

    def grown(name, labels=""):
        return after.value("openmoed_" + name, labels) - before.value("openmoed_" + name, labels)

    assert grown("prompt_tokens_total") == prompt
    assert grown("generated_tokens_total") == generated
    assert grown("time_to_first_token_seconds_count") == firsts
    assert grown("queue_seconds_count") == firsts
    assert grown("request_duration_seconds_count") == firsts
    assert grown("inter_token_seconds_count") == generated - firsts
    assert grown("time_per_output_token_seconds_count") == several
    assert grown("request_prompt_tokens_count") == firsts
    assert grown("request_prompt_tokens_sum") == asked
    assert grown("request_generated_tokens_count") == firsts
    assert grown("request_generated_tokens_sum") == generated
    ended = [grown("requests_total", f'outcome="{o}"') for o in ("stop", "length")]
    assert sum(ended) == firsts and ended[1] >= 3
    assert grown("requests_total", 'outcome="error"') == 0
    spent = grown("time_to_first_token_seconds_sum") + grown("inter_token_seconds_sum")
    assert spent <= grown("request_duration_seconds_sum") * 1.05 + 0.05
    assert grown("step_tokens_total") == prompt + generated - firsts, "a last token is not fed back"


def test_every_end_is_counted_once(daemon, chat):
    def outcomes():
        samples = quiet(daemon).families["openmoed_requests_total"][1]
        return {labels: value for (_, labels), value in samples.items()}

    def changed(ask):
        before = outcomes()
        ask()
        return {k: v - before[k] for k, v in outcomes().items() if v != before[k]}

    assert changed(lambda: chat(**{**ASK, "max_tokens": 1})) == {'outcome="length"': 1}
    text = chat(**ASK).choices[0].message.content
    assert changed(lambda: chat(**ASK, stop=text[:2])) == {'outcome="stop"': 1}
    body = {**ASK, "temperature": 9}
    path = "/v1/chat/completions"
    assert changed(lambda: daemon.request("POST", path, body)) == {'outcome="rejected"': 1}


def test_reading_the_page_changes_no_engine_figure(daemon):
    first, second = quiet(daemon), page(daemon)
    changed = {key for key, value in second.growing().items() if first.growing().get(key) != value}
    assert {name for name, _ in changed} <= {"openmoed_http_responses_total"}


def test_expert_drops_by_layer_and_expert(start):
    """Dropless drops nothing; the published rule does when many rows choose alike."""
    for mode in ("dropless", "reference"):
        daemon = start("--expert-capacity", mode)
        with connect(daemon) as client:
            client.chat.completions.create(
                model=MODEL, messages=[user("hello " * 400)], max_tokens=1)
        samples = page(daemon).families["openmoed_expert_dropped_picks_total"][1]
        assert [labels for _, labels in samples] == [
            f'layer="{layer}",expert="{expert}"' for layer in (1, 3, 5) for expert in range(8)]
        assert (sum(samples.values()) > 0) == (mode == "reference")
