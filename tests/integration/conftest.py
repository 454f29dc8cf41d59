# SPDX-License-Identifier: Apache-2.0
"""Starts the daemon for the integration tests: on a free port of 127.0.0.1, ended by its pid.

TEST_BINARY and TEST_MODEL name another binary or model folder. Without a model the tests that
need a running daemon are skipped. OPENMOED_* variables of the caller do not reach the daemon.
"""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("TEST_BINARY", str(ROOT / "build" / "openmoed"))
MODEL = os.environ.get("TEST_MODEL", str(ROOT / "deploy" / "demo-model"))
SERVED_NAME = "test-model"
START_SECONDS = 120


class Daemon:
    """One process. `host` and `port` are where it listens, `log` is what it wrote so far."""

    def __init__(self, *flags, model=MODEL, wait=True):
        self.host = "127.0.0.1"
        self.model = SERVED_NAME
        self._log = tempfile.TemporaryFile(mode="w+b")
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENMOED_")}
        command = [BINARY, "--model", model, "--served-model-name", SERVED_NAME]
        command += ["--host", self.host, "--port", "0", *flags]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=env)
        try:
            self.port = self._wait_for_port()
            if wait:
                self.wait_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def log(self):
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def _until(self, what, probe):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            found = probe()
            if found:
                return found
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode}:\n{self.log}")
            time.sleep(0.02)
        raise RuntimeError(f"no {what}:\n{self.log}")

    def _wait_for_port(self):
        line = re.compile(r"listening on http://\S+:(\d+)")
        return int(self._until("port", lambda: line.search(self.log)).group(1))

    def wait_ready(self):
        self._until("readiness", lambda: self.get("/health")[0] == 200)

    def connection(self, timeout=60):
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None):
        """Status, headers (lower case) and body of one request on a connection of its own."""
        conn = self.connection()
        try:
            if isinstance(body, dict):
                body = json.dumps(body)
                headers = {"Content-Type": "application/json", **(headers or {})}
            conn.request(method, path, body=body, headers=headers or {})
            answer = conn.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            conn.close()

    def get(self, path):
        return self.request("GET", path)

    def metric(self, series):
        """Value of one series of /metrics, labels as written; 0 while it is not there."""
        page = self.get("/metrics")[2].decode()
        found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.M)
        return float(found.group(1)) if found else 0.0

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, timeout=60):
        return self.process.wait(timeout)

    def stop(self):
        """Ends the process if it still runs; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait(10)


def need_model():
    if not os.path.exists(BINARY):
        pytest.skip(f"no binary: {BINARY}")
    if "TEST_MODEL" not in os.environ and not os.path.exists(os.path.join(MODEL, "config.json")):
        pytest.skip(f"no model: {MODEL}")


@pytest.fixture(scope="session")
def daemon():
    """One daemon for every test that leaves it running."""
    need_model()
    running = Daemon()
    yield running
    assert running.stop() == 0, running.log


@pytest.fixture
def start():
    """start(*flags): a daemon of the test's own, ended with it."""
    need_model()
    running = []

    def begin(*flags, **more):
        running.append(Daemon(*flags, **more))
        return running[-1]

    yield begin
    for one in running:
        one.stop()
