# SPDX-License-Identifier: Apache-2.0
"""The files of deploy/ that others run: nginx (Debian's package nginx) with its own configuration in front of
two daemons, and the commands, options and probes that the compose and Kubernetes files give to the daemon."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import threading

import httpx2
import openai
import pytest
import yaml

from client import MODEL, eventually, user
from conftest import BINARY, MODEL as FOLDER, ROOT

DEPLOY = ROOT / "deploy"
LONG = {"model": MODEL, "messages": [user("Hello!")], "max_tokens": 900, "temperature": 0, "stream": True,
        "extra_body": {"ignore_eos": True}}
SHORT = {"model": MODEL, "messages": [user("Hello!")], "max_tokens": 3, "temperature": 0}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def default_of(option):
    said = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True).stdout
    return re.search(rf"^  {option} .*?\[default: ([^;\]]*)", said, re.M | re.S).group(1)


def variables():
    said = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"; (OPENMOED_\w+)\]", said))


def health(daemon):
    try:
        return daemon.get("/health")[0]
    except OSError:
        return None


# ---- nginx


class Nginx:
    def __init__(self, folder, daemons):
        key, cert = folder / "key.pem", folder / "cert.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                        "/CN=localhost", "-keyout", key, "-out", cert], check=True, capture_output=True)
        self.port = free_port()
        text = (DEPLOY / "nginx.conf").read_text()
        temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in
                            ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        for old, new in (("/etc/openmoed/tls/cert.pem", cert), ("/etc/openmoed/tls/key.pem", key),
                         ("/run/nginx.pid", folder / "pid"), ("listen 443", f"listen 127.0.0.1:{self.port}"),
                         ("127.0.0.1:8000", f"127.0.0.1:{daemons[0].port}"),
                         ("127.0.0.1:8001", f"127.0.0.1:{daemons[1].port}"),
                         ("http {", f"http {{ access_log off; {temporary}")):
            assert text.count(old) == 1, old
            text = text.replace(old, str(new))
        (folder / "nginx.conf").write_text(text)
        mine = "user root;" if os.geteuid() == 0 else ""
        command = ["/usr/sbin/nginx", "-c", folder / "nginx.conf", "-e", folder / "log"]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        self.process = subprocess.Popen([*command, "-g", f"daemon off; {mine}"])
        self.url = f"https://127.0.0.1:{self.port}"
        eventually(lambda: self.process.poll() is None and self.answers())

    def answers(self):
        try:
            return self.get("/health").status_code == 200
        except httpx2.TransportError:
            return False

    def get(self, path):
        return httpx2.get(self.url + path, verify=False)

    def connect(self, max_retries=0):
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=max_retries,
                             http_client=httpx2.Client(verify=False, http2=False), timeout=120)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def balanced(start, tmp_path):
    """(nginx, daemons)"""
    daemons = [start("--max-connections-per-address", "0", "--drain-timeout", "60") for _ in range(2)]
    nginx = Nginx(tmp_path, daemons)
    yield nginx, daemons
    nginx.stop()


def busy(daemons):
    return [one for one in daemons if one.metric("openmoed_requests_running") > 0]


def test_nginx_passes_streams_at_once_and_tells_of_clients_that_go(balanced):
    nginx, daemons = balanced
    with nginx.connect() as client:
        stream = client.chat.completions.create(**LONG)
        first = [next(iter(stream)) for _ in range(3)]
        assert first[0].choices[0].delta.role == "assistant" and first[2].choices[0].delta.content
        serving = busy(daemons)
        assert len(serving) == 1, "the answer is under way, and pieces of it are here"
        stream.close()
        eventually(lambda: serving[0].metric('openmoed_requests_total{outcome="cancelled"}') == 1)
        eventually(lambda: not busy(daemons))
    for _ in range(4):  # a caller stays with its daemon
        with nginx.connect() as client:
            client.chat.completions.create(**SHORT)
    assert serving[0].metric('openmoed_requests_total{outcome="length"}') == 4


def test_nginx_leaves_out_a_daemon_that_drains(balanced):
    nginx, daemons = balanced
    with nginx.connect() as client, nginx.connect() as other:
        stream = client.chat.completions.create(**LONG)
        pieces = [next(iter(stream))]
        going = busy(daemons)[0]
        staying = next(one for one in daemons if one is not going)
        going.signal(signal.SIGTERM)
        eventually(lambda: health(going) == 503)
        reader = threading.Thread(target=lambda: pieces.extend(stream))
        reader.start()
        for _ in range(3):
            assert other.chat.completions.create(**SHORT).usage.completion_tokens == 3
        assert staying.metric('openmoed_requests_total{outcome="length"}') == 3
        reader.join(100)
        assert pieces[-1].choices[0].finish_reason == "length" and len(pieces) > 100
    assert going.wait() == 0


def test_nginx_answers_in_the_form_of_the_interface_when_nobody_does(balanced):
    nginx, daemons = balanced
    assert nginx.get("/metrics").status_code == 403
    for one in daemons:
        assert one.stop() == 0
    with nginx.connect() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**SHORT)
    assert caught.value.status_code == 502 and caught.value.type == "server_error"


# ---- compose


def test_compose_file_and_its_health_check(start):
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    targets = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    for service in services.values():
        assert set(service["environment"]) <= variables()
        assert service["build"]["target"] in targets
        assert int(service["stop_grace_period"].removesuffix("s")) > int(default_of("--drain-timeout")) + 5
    kind, *command = services["openmoed"]["healthcheck"]["test"]
    assert kind == "CMD"
    daemon = start("--drain-timeout", "60")

    def healthy():
        here = [part.replace("$$", "$").replace("/8000", f"/{daemon.port}") for part in command]
        return subprocess.run(here, capture_output=True, timeout=30).returncode == 0

    assert healthy()
    client = openai.OpenAI(base_url=daemon.url + "/v1", api_key="none")
    stream = client.chat.completions.create(**LONG)
    next(iter(stream))
    daemon.signal(signal.SIGTERM)
    eventually(lambda: health(daemon) == 503)
    assert not healthy()
    stream.close()
    assert daemon.wait() == 0
    assert not healthy()
    client.close()


# ---- Kubernetes


@pytest.fixture(scope="module")
def kubernetes():
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "openmoed.yaml").read_text()))
    return {one["kind"]: one["spec"] for one in documents}


def test_kubernetes_parts_find_each_other(kubernetes):
    pod = kubernetes["Deployment"]["template"]
    labels = pod["metadata"]["labels"]
    for kind, selector in (("Deployment", "matchLabels"), ("PodDisruptionBudget", "matchLabels"), ("Service", None)):
        wanted = kubernetes[kind]["selector"]
        assert (wanted[selector] if selector else wanted) == labels
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == int(default_of("--port"))
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == default_of("--port")
    assert kubernetes["Service"]["ports"][0]["targetPort"] == port["name"]
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in pod["spec"]["volumes"]}
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_kubernetes_options_and_probes(kubernetes, start, tmp_path):
    pod = kubernetes["Deployment"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(one.split("=", 1) for one in container["args"])
    keys = tmp_path / "keys.json"
    digest = hashlib.sha256(b"key").hexdigest()
    keys.write_text(json.dumps({"tenants": [{"name": "one", "keys": ["sha256:" + digest]}]}))
    (secret,) = [one["secret"] for one in pod["volumes"] if "secret" in one]
    keys.chmod(secret["defaultMode"])  # the volume's group is the daemon's
    assert options.pop("--model").startswith("/models/")
    assert options.pop("--api-key-file") == "/etc/openmoed/keys.json"
    daemon = start(*(f"{name}={value}" for name, value in options.items()), "--api-key-file", str(keys), model=FOLDER)
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: daemon.get(path)[0] for kind, path in paths.items()} == dict.fromkeys(paths, 200)

    sleep = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep[0] == "sleep"
    assert int(sleep[1]) + int(options["--drain-timeout"]) < pod["terminationGracePeriodSeconds"]
    with openai.OpenAI(base_url=daemon.url + "/v1", api_key="key") as client:
        stream = client.chat.completions.create(**LONG)
        next(iter(stream))
        daemon.signal(signal.SIGTERM)
        eventually(lambda: health(daemon) == 503)
        assert daemon.get(paths["readiness"])[0] == 503
        assert daemon.get(paths["liveness"])[0] == 200, "what drains must live"
        assert list(stream)[-1].choices[0].finish_reason == "length"
    assert daemon.wait() == 0
