# SPDX-License-Identifier: Apache-2.0
"""Tenants by API key with the real `openai` client: who is let in, limits and their headers,
models, the file read again on SIGHUP, who shares cached beginnings, and whose turn it is."""

import hashlib
import json
import re
import signal
import threading

import openai
import pytest

from client import MODEL, connect, eventually, user
from conftest import SERVED_NAME
from test_metrics import Page
from test_startup import refused

HELLO = [user("Hello! What can you do?")]
ASK = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 4}
ON = {"extra_body": {"ignore_eos": True}}  # answers of exactly max_tokens


def hashed(key):
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def tenant(name, *keys, **rules):
    return {"name": name, "keys": [hashed(k) for k in keys], **rules}


class KeyFile:
    def __init__(self, path):
        self.path = path

    def write(self, *tenants):
        self.path.write_text(json.dumps({"tenants": tenants}))
        self.path.chmod(0o600)
        return str(self.path)

    def reload(self, daemon, *tenants):
        before = daemon.log.count("keys: tenants=")
        self.write(*tenants)
        daemon.signal(signal.SIGHUP)
        eventually(lambda: daemon.log.count("keys: tenants=") > before)


@pytest.fixture
def key_file(tmp_path):
    return KeyFile(tmp_path / "keys.json")


def chat(client, **more):
    return client.chat.completions.create(**{**ASK, **more})


def raw_chat(client, **more):
    """The answer with its headers."""
    return client.chat.completions.with_raw_response.create(**{**ASK, **more})


def denied(client, **more):
    with pytest.raises(openai.AuthenticationError) as caught:
        chat(client, **more)
    assert caught.value.code == "invalid_api_key"


def limited(kind, client, **more):
    """The 429 of a request past a limit; its error and its headers."""
    with pytest.raises(openai.RateLimitError) as caught:
        chat(client, **more)
    error = caught.value
    assert (error.code, error.type, error.param) == ("rate_limit_exceeded", kind, None)
    return error, error.response.headers


# ---- who is let in


def test_every_key_of_the_file_and_of_the_option(start, key_file):
    path = key_file.write(tenant("acme", "k-acme-1", "k-acme-2"), tenant("bolt", "k-bolt"))
    daemon = start("--api-key-file", path, "--api-key", "k-master")
    for key in ("k-acme-1", "k-acme-2", "k-bolt", "k-master"):
        with connect(daemon, key=key) as client:
            answer = raw_chat(client)
            assert answer.parse().usage.completion_tokens > 0
            assert not [h for h in answer.headers if h.startswith("x-ratelimit")]
            assert [m.id for m in client.models.list().data] == [MODEL]
    for key in ("k-acme", "k-acme-11", "none", hashed("k-bolt")):
        with connect(daemon, key=key) as client:
            denied(client)
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
    assert daemon.get("/v1/models")[0] == 401
    for path in ("/health", "/version", "/metrics"):
        assert daemon.get(path)[0] == 200
    assert "k-acme" not in daemon.log and hashed("k-bolt")[7:] not in daemon.log
    assert "other users" not in daemon.log


def test_a_file_that_others_may_read_is_pointed_out(start, key_file):
    path = key_file.write(tenant("acme", "k-acme"))
    key_file.path.chmod(0o644)
    daemon = start("--api-key-file", path)
    assert f"WARN {path}: other users may read or change it (mode 644): chmod 600" in daemon.log


def test_a_bad_file_ends_the_start(key_file):
    path = key_file.write(tenant("acme", "k-acme"), {**tenant("bolt"), "keys": ["k-plain"]})
    line = refused("--api-key-file", path)
    assert line == f"{path}: tenants[1].keys: element 0 is not sha256: and 64 hex digits"
    path = key_file.write(tenant("acme", "k-acme"), tenant("bolt", "k-acme"))
    line = refused("--api-key-file", path)
    assert line.startswith(f"{path}: tenants[1].keys: element 0 stands before")
    assert "No such file" in refused("--api-key-file", "/nowhere/keys.json")


# ---- limits


def test_requests_a_minute(start, key_file):
    path = key_file.write(tenant("acme", "k-acme", requests_per_minute=2), tenant("bolt", "k-bolt"))
    daemon = start("--api-key-file", path)
    with connect(daemon, key="k-acme") as client, connect(daemon, key="k-bolt") as other:
        first = raw_chat(client).headers
        assert first["x-ratelimit-limit-requests"] == "2"
        assert first["x-ratelimit-remaining-requests"] == "1"
        assert re.fullmatch(r"(\d+(\.\d+)?s|\d+ms)", first["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in first
        stream = raw_chat(client, stream=True)
        assert stream.headers["x-ratelimit-remaining-requests"] == "0"
        assert list(stream.parse())[-1].choices[0].finish_reason
        error, headers = limited("requests", client)
        assert "2 requests a minute" in error.message
        assert 1 <= int(headers["retry-after"]) <= 30
        assert headers["x-ratelimit-remaining-requests"] == "0"
        models = client.models.with_raw_response.list().headers  # not a generation: not counted
        assert models["x-ratelimit-remaining-requests"] == "0"
        assert chat(other).choices, "no business of other tenants"


def test_tokens_a_minute(start, key_file):
    path = key_file.write(tenant("acme", "k-acme", tokens_per_minute=300))
    daemon = start("--api-key-file", path)
    with connect(daemon, key="k-acme") as client:
        answer = raw_chat(client, max_tokens=200)
        usage = answer.parse().usage
        assert usage.completion_tokens < 100, "the reply ends by itself"
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert 300 - usage.total_tokens <= left < 300, "what was not used is given back at once"
        assert answer.headers["x-ratelimit-limit-tokens"] == "300"

        error, headers = limited("tokens", client, max_tokens=300)
        assert "300 tokens a minute" in error.message
        assert "retry-after" not in headers, "waiting does not help"
        all_of_it = 300 - usage.prompt_tokens
        error, headers = limited("tokens", client, max_tokens=all_of_it)
        assert int(headers["retry-after"]) >= 1
        assert int(headers["x-ratelimit-remaining-tokens"]) < 300
        assert re.fullmatch(r"(\d+(\.\d+)?s|\d+ms)", headers["x-ratelimit-reset-tokens"])
        assert chat(client, max_tokens=1).choices, "a small one still fits"


def test_requests_at_once(start, key_file):
    path = key_file.write(tenant("acme", "k-acme", max_concurrent_requests=1))
    daemon = start("--api-key-file", path)
    with connect(daemon, key="k-acme") as client:
        running = chat(client, max_tokens=900, stream=True, **ON)
        next(running)
        _, headers = limited("requests", client)
        assert headers["retry-after"] == "1"
        running.close()  # its place is free once it is seen to be gone
        eventually(lambda: daemon.metric("openmoed_requests_running") == 0)
        assert chat(client).choices
        assert chat(client, n=3).choices, "one request, whatever its choices"
        with pytest.raises(openai.BadRequestError):
            chat(client, temperature=9)
        assert chat(client).choices, "a refused request takes no place"


def test_what_the_queue_refuses_is_not_charged(start, key_file):
    path = key_file.write(
        tenant("acme", "k-acme", requests_per_minute=100, max_concurrent_requests=2))
    daemon = start("--api-key-file", path, "--max-num-seqs", "1", "--max-queued-requests", "2")
    with connect(daemon, key="k-acme") as client:
        running = chat(client, max_tokens=900, n=2, stream=True, **ON)
        next(running)
        eventually(lambda: daemon.metric("openmoed_requests_waiting") == 1)
        for _ in range(5):
            with pytest.raises(openai.RateLimitError) as caught:
                chat(client, n=2)
            assert caught.value.code == "queue_full"
            remaining = caught.value.response.headers["x-ratelimit-remaining-requests"]
            assert int(remaining) == 99
        running.close()


# ---- models


def test_a_model_that_is_not_theirs_does_not_exist(start, key_file):
    path = key_file.write(tenant("acme", "k-acme", models=["other-model"]),
                          tenant("bolt", "k-bolt", models=["other-model", SERVED_NAME]))
    daemon = start("--api-key-file", path)
    with connect(daemon, key="k-acme") as client:
        for name in (MODEL, "no-such-model", "other-model"):
            with pytest.raises(openai.NotFoundError) as caught:
                chat(client, model=name)
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
            assert caught.value.message.endswith(f"The model '{name}' does not exist.")
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve(name)
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model=name, prompt="x")
        assert client.models.list().data == []
    header = {"Authorization": "Bearer k-acme"}
    assert daemon.request("POST", "/tokenize", {"prompt": "x"}, header)[0] == 400
    body = {"prompt": "x", "model": MODEL}
    assert daemon.request("POST", "/tokenize", body, header)[0] == 404
    assert daemon.request("POST", "/detokenize", {"tokens": [5], "model": MODEL}, header)[0] == 404
    with connect(daemon, key="k-bolt") as client:
        assert chat(client).choices
        assert [m.id for m in client.models.list().data] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
    assert daemon.request("POST", "/tokenize", {"prompt": "x"},
                          {"Authorization": "Bearer k-bolt"})[0] == 200


# ---- the file read again


def test_reload_adds_and_removes_keys(start, key_file):
    old = tenant("acme", "k-old", requests_per_minute=3)
    daemon = start("--api-key-file", key_file.write(old, tenant("bolt", "k-bolt")))
    with connect(daemon, key="k-old") as client, connect(daemon, key="k-new") as renewed, \
            connect(daemon, key="k-bolt") as bolt:
        assert chat(client).choices and chat(bolt).choices
        denied(renewed)
        running = chat(bolt, max_tokens=400, stream=True, stream_options={"include_usage": True},
                       **ON)
        next(running)
        key_file.reload(daemon, tenant("acme", "k-new", requests_per_minute=3))
        denied(client)
        denied(bolt)
        headers = raw_chat(renewed).headers
        assert headers["x-ratelimit-remaining-requests"] == "1", "a new key, the same tenant"
        usage = list(running)[-1].usage  # a tenant that is gone finishes what runs
        assert usage.completion_tokens == 400
        series = 'openmoed_tenant_requests_total{tenant="%s"}'
        assert daemon.metric(series % "acme") == 2
        assert "bolt" not in daemon.get("/metrics")[2].decode()

        key_file.reload(daemon, tenant("acme", "k-old", "k-new"), tenant("bolt", "k-bolt"))
        assert chat(client).choices and chat(renewed).choices and chat(bolt).choices
        assert daemon.metric(series % "acme") == 4
    assert daemon.stop() == 0, daemon.log


def test_a_bad_file_at_reload_changes_nothing(start, key_file):
    daemon = start("--api-key-file", key_file.write(tenant("acme", "k-acme")))
    with connect(daemon, key="k-acme") as client:
        for text in ('{"tenants":[', '{"tenants":[{"name":"acme","keys":["k-acme"]}]}'):
            before = daemon.log.count("ERROR SIGHUP: ")
            key_file.path.write_text(text)
            daemon.signal(signal.SIGHUP)
            eventually(lambda: daemon.log.count("ERROR SIGHUP: ") > before)
            assert chat(client).choices
        key_file.path.unlink()
        daemon.signal(signal.SIGHUP)
        eventually(lambda: "keys.json: No such file or directory; the keys" in daemon.log)
        assert chat(client).choices
        key_file.reload(daemon)
        denied(client)
    assert daemon.stop() == 0, daemon.log


def test_reloads_while_requests_run(start, key_file):
    """Every request of a tenant that stays is answered, whatever happens to the others."""
    acme, bolt = tenant("acme", "k-acme"), tenant("bolt", "k-bolt")
    daemon = start("--api-key-file", key_file.write(acme, bolt))
    failures, answers = [], []

    def ask():
        try:
            with connect(daemon, key="k-acme") as client:
                for _ in range(10):
                    answers.append(chat(client, stream=False).usage.completion_tokens)
        except Exception as error:  # shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(20):
        key_file.reload(daemon, acme, *([bolt] if i % 2 else []))
    for thread in threads:
        thread.join()
    assert not failures and len(answers) == 40
    assert daemon.metric('openmoed_tenant_requests_total{tenant="acme"}') == 40
    assert daemon.metric('openmoed_tenant_generated_tokens_total{tenant="acme"}') == sum(answers)
    assert daemon.stop() == 0, daemon.log


# ---- what is shared


def test_cached_beginnings_stay_within_a_tenant(start, key_file):
    path = key_file.write(tenant("acme", "k-acme-1", "k-acme-2"), tenant("bolt", "k-bolt"))
    daemon = start("--api-key-file", path, "--api-key", "k-master")

    def cached(key):
        with connect(daemon, key=key) as client:
            return chat(client).usage.prompt_tokens_details.cached_tokens

    assert cached("k-acme-1") == 0
    found = cached("k-acme-1")
    assert found >= 16
    assert cached("k-bolt") == 0
    assert cached("k-master") == 0
    assert cached("k-acme-2") == found, "two keys of one tenant"
    assert cached("k-bolt") == found, "its own, by now"


def test_a_flood_does_not_starve_who_asks_seldom(start, key_file):
    flood = 40
    path = key_file.write(tenant("flood", "k-flood"), tenant("seldom", "k-seldom"))
    daemon = start("--api-key-file", path, "--max-num-seqs", "1")
    ended = []

    def ask(key):
        with connect(daemon, key=key) as client:
            chat(client, max_tokens=60, **ON)
            ended.append(key)

    threads = [threading.Thread(target=ask, args=("k-flood",)) for _ in range(flood)]
    for thread in threads:
        thread.start()
    eventually(lambda: daemon.metric("openmoed_requests_waiting") > flood / 2)
    ask("k-seldom")
    for thread in threads:
        thread.join()
    assert len(ended) == flood + 1
    behind = flood - ended.index("k-seldom")
    assert behind >= flood / 4, "first come, first served would have let the flood go first"


# ---- figures


def test_figures_by_tenant(start, key_file):
    path = key_file.write(tenant("acme", "k-acme", requests_per_minute=2), tenant("bolt", "k-bolt"))
    daemon = start("--api-key-file", path)
    with connect(daemon, key="k-acme") as acme, connect(daemon, key="k-bolt") as bolt:
        usages = [chat(acme).usage, chat(acme, n=2).usage]
        limited("requests", acme)
        chat(bolt)
    status, _, body = daemon.get("/metrics")
    page = Page(body.decode())
    name = "openmoed_tenant_%s_total"
    assert status == 200
    assert page.value(name % "requests", 'tenant="acme"') == 2
    assert page.value(name % "requests", 'tenant="bolt"') == 1
    prompt = sum(u.prompt_tokens for u in usages)
    assert page.value(name % "prompt_tokens", 'tenant="acme"') == prompt
    generated = sum(u.completion_tokens for u in usages)
    assert page.value(name % "generated_tokens", 'tenant="acme"') == generated
    rejected = {labels: value for (_, labels), value in page.families[name % "rejected"][1].items()}
    assert rejected.pop('tenant="acme",reason="requests_per_minute"') == 1
    assert len(rejected) == 5 and not any(rejected.values())


def test_without_a_file_there_are_no_figures_by_tenant(start):
    daemon = start("--api-key", "k-master")
    with connect(daemon, key="k-master") as client:
        assert chat(client).choices
    assert "openmoed_tenant" not in daemon.get("/metrics")[2].decode()
