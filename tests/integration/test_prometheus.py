# SPDX-License-Identifier: Apache-2.0
"""Prometheus itself scrapes the daemon under load with the configuration of deploy/prometheus: queries over its
HTTP API give what the clients counted, every rule and every panel of the dashboard in deploy/grafana finds its
series, and promtool has nothing to say. Needs Debian's package `prometheus`."""

import concurrent.futures
import hashlib
import json
import math
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import yaml

from client import MODEL, connect, eventually, user
from conftest import ROOT, Daemon, need_model

RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "openmoed.json").read_text())
KEY = "key-of-a-test"
CLIENTS, CHATS = 4, 6  # at once, and one after the other in each
SCRAPES = 4  # after the load, so that the last figures are there


def promtool(*args, **more):
    done = subprocess.run(["promtool", *map(str, args)], capture_output=True, text=True, **more)
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """One server with a folder of its own, which scrapes several times a second."""

    def __init__(self, folder, target):
        config = yaml.safe_load((RULES / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
        config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = open(folder / "log", "w+", encoding="utf-8")
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                   f"--web.listen-address={self.url[7:]}"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        try:
            eventually(self.ready, 60)
        except BaseException:
            self.stop()
            raise

    def ready(self):
        assert self.process.poll() is None, "prometheus has ended"
        try:
            with urllib.request.urlopen(self.url + "/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def api(self, path, **arguments):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            said = json.load(answer)
        assert said["status"] == "success" and not said.get("warnings"), said
        return said["data"]

    def series(self, query):
        """[(labels, value)] now; +Inf and NaN as floats."""
        data = self.api("query", query=query)
        assert data["resultType"] == "vector"
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def value(self, query):
        found = self.series(query)
        assert len(found) == 1, (query, found)
        return found[0][1]

    def scrapes(self):
        found = self.series('sum_over_time(up{job="openmoed"}[10m])')
        return found[0][1] if found else 0

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


class Load:
    """What the clients asked for and were told."""

    def __init__(self, daemon):
        self.prompt = self.cached = self.generated = self.requests = self.several = 0
        self.seconds = []
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            for usages in pool.map(lambda i: self._chats(daemon, i), range(CLIENTS)):
                for seconds, usage in usages:
                    self.seconds.append(seconds)
                    self.requests += 1
                    self.prompt += usage.prompt_tokens
                    self.cached += usage.prompt_tokens_details.cached_tokens
                    self.generated += usage.completion_tokens
                    self.several += usage.completion_tokens > 1

    @staticmethod
    def _chats(daemon, number):
        usages = []
        with connect(daemon, key=KEY) as client:
            for i in range(CHATS):
                begun = time.monotonic()
                stream = client.chat.completions.create(
                    model=MODEL, messages=[user(f"{number} " + "word " * (20 * i))], max_tokens=1 + 20 * i, stream=True,
                    stream_options={"include_usage": True}, temperature=0, extra_body={"ignore_eos": True})
                usage = list(stream)[-1].usage
                usages.append((time.monotonic() - begun, usage))
        return usages


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(prometheus, daemon, load): after a load that was scraped from its beginning to its end."""
    need_model()
    folder = tmp_path_factory.mktemp("prometheus")
    keys = folder / "keys.json"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    tenant = {"name": "one", "keys": ["sha256:" + digest], "requests_per_minute": 1000}
    keys.write_text(json.dumps({"tenants": [tenant]}))
    keys.chmod(0o600)
    daemon = Daemon("--api-key-file", str(keys), "--max-num-seqs", "3")
    prometheus = None
    try:
        prometheus = Prometheus(folder, f"{daemon.host}:{daemon.port}")
        eventually(lambda: prometheus.scrapes() >= 2, 60)
        load = Load(daemon)
        seen = prometheus.scrapes()
        eventually(lambda: prometheus.scrapes() >= seen + SCRAPES, 60)
        yield prometheus, daemon, load
    finally:
        if prometheus:
            prometheus.stop()
        daemon.stop()


def test_promtool_accepts_rules_and_configuration():
    for command in (("check", "config", RULES / "prometheus.yml"),
                    ("check", "rules", "--lint=all", "--lint-fatal", RULES / "rules.yml"),
                    ("test", "rules", RULES / "rules.test.yml")):
        code, said = promtool(*command)
        assert code == 0, said
    tested = {case["alertname"] for test in yaml.safe_load((RULES / "rules.test.yml").read_text())["tests"]
              for case in test["alert_rule_test"] if case["exp_alerts"]}
    rules = yaml.safe_load((RULES / "rules.yml").read_text())["groups"][0]["rules"]
    assert tested == {rule["alert"] for rule in rules}, "every alert has been seen to fire"


def test_promtool_finds_no_fault_in_the_page(served):
    status, _, page = served[1].get("/metrics")
    assert status == 200
    assert promtool("check", "metrics", input=page.decode()) == (0, "")
    assert promtool("check", "metrics", input="# TYPE a counter\na 1\n")[0] != 0  # it does look


def test_queries_give_what_the_clients_counted(served):
    prometheus, _, load = served
    assert load.requests == CLIENTS * CHATS and load.generated > 500
    ended = 'openmoed_requests_total{outcome=~"stop|length"}'
    for query, want in (
            (f"sum({ended})", load.requests),
            ('openmoed_requests_total{outcome="error"}', 0),
            ("openmoed_generated_tokens_total", load.generated),
            ("openmoed_prompt_tokens_total", load.prompt - load.cached),
            ("openmoed_prefix_hit_tokens_total", load.cached),
            ("openmoed_request_prompt_tokens_sum", load.prompt),
            ("openmoed_request_generated_tokens_sum", load.generated),
            ("openmoed_tenant_generated_tokens_total{tenant='one'}", load.generated),
            ("openmoed_requests_running + openmoed_requests_waiting", 0),
            *((f"openmoed_{name}_count", load.requests)
              for name in ("time_to_first_token_seconds", "request_duration_seconds", "queue_seconds",
                           "request_prompt_tokens", "request_generated_tokens")),
            ("openmoed_time_per_output_token_seconds_count", load.several),
            ("openmoed_inter_token_seconds_count", load.generated - load.requests)):
        assert prometheus.value(query) == want, query


def test_queries_over_time(served):
    prometheus, _, load = served
    assert prometheus.value('min_over_time(up{job="openmoed"}[10m])') == 1
    growing = [name for name in prometheus.api("label/__name__/values")
               if re.fullmatch("openmoed_.*_(total|sum|count|bucket)", name)]
    assert len(growing) > 40
    for name in growing:
        assert prometheus.series(f"resets({name}[10m]) > 0") == []
    assert 1 <= prometheus.value("max_over_time(openmoed_requests_running[10m])") <= 3
    grown = "max_over_time({0}[10m]) - min_over_time({0}[10m])"
    assert prometheus.value(grown.format("openmoed_generated_tokens_total")) == load.generated
    # nobody was served longer than it waited, in all and at most
    assert 0 < prometheus.value("openmoed_request_duration_seconds_sum") <= sum(load.seconds)
    bounds = [float(labels["le"]) for labels, _ in prometheus.series("openmoed_request_duration_seconds_bucket")]
    longest = prometheus.value("histogram_quantile(1, openmoed_request_duration_seconds_bucket)")
    assert longest <= min(bound for bound in bounds if bound >= max(load.seconds))
    middle = prometheus.value("histogram_quantile(0.5, openmoed_request_generated_tokens_bucket)")
    assert 20 < middle <= 50  # the answers have 1, 21, 41, 61, 81 and 101 tokens


def test_every_rule_is_evaluated(served):
    prometheus, _, _ = served
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 7
    for rule in rules:
        assert rule["health"] == "ok" and rule["state"] == "inactive", rule
        for name in set(re.findall(r"openmoed_\w+|process_start\w+", rule["query"])):
            assert prometheus.series(name), f"{rule['name']}: nothing is called {name}"


def panels():
    return [one for one in DASHBOARD["panels"] if one["type"] != "row"]


def test_dashboard_is_one():
    ids = [one["id"] for one in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) and len(panels()) > 15
    taken = set()
    for one in DASHBOARD["panels"]:
        at = one["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, one["title"]
        taken |= cells
    assert len({one["title"] for one in panels()}) == len(panels())


@pytest.mark.parametrize("panel", panels(), ids=lambda one: one["title"].replace(" ", "-"))
def test_every_panel_shows_something(served, panel):
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "10m").replace("$instance", ".*")
        assert "$" not in query
        found = served[0].series(query)
        assert found, query
        for labels, value in found:
            assert math.isnan(value) or value >= 0, (query, value)
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels.keys(), labels
    sure = ("Requests ended", "Time to first token", "Step", "Rows of a step", "Share of the picks")
    assert panel["title"] not in sure or any(value > 0 for _, value in found)


def test_a_daemon_that_ends_is_missed(served):
    """The last test of this file: it ends the daemon."""
    prometheus, daemon, _ = served
    assert daemon.stop() == 0
    eventually(lambda: prometheus.value('up{job="openmoed"}') == 0)
    eventually(lambda: [alert["labels"]["alertname"] for alert in prometheus.api("alerts")["alerts"]
                        if alert["state"] == "pending"] == ["OpenmoedDown"])
