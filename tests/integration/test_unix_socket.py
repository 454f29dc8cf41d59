# SPDX-License-Identifier: Apache-2.0
"""A unix socket instead of a port: permissions, sockets left behind, and the same behaviour."""

import json
import os
import signal
import socket
import stat
import subprocess

import pytest

from client import eventually
from listeners import SHORT, UnixDaemon, refused
from test_http import LONG, cancelled, events, nothing_runs, open_stream


@pytest.fixture
def serve():
    """serve(path, *flags): a daemon of the test's own."""
    running = []

    def begin(*args, **more):
        running.append(UnixDaemon(*args, **more))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "openmoed.sock"


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_serves_on_the_socket_alone(serve, path):
    # the host would need a key: it is not used
    daemon = serve(path, "--host", "0.0.0.0")
    assert mode(path) == 0o660
    body = json.dumps(SHORT)
    command = ["curl", "-s", "--unix-socket", str(path), "http://localhost/v1/completions", "-H",
               "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert answer["usage"]["completion_tokens"] == 8
    conn, stream = open_stream(daemon, {**SHORT, "stream": True})
    assert events(stream)[-1] == "[DONE]"
    conn.close()
    with open("/proc/net/tcp", encoding="ascii") as table:
        inodes = {line.split()[9] for line in table if line.split()[3] == "0A"}
    mine = {os.readlink(f"/proc/{daemon.process.pid}/fd/{n}")
            for n in os.listdir(f"/proc/{daemon.process.pid}/fd")}
    assert not mine & {f"socket:[{i}]" for i in inodes}
    assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize("text, want", [("owner", 0o600), ("group", 0o660), ("all", 0o666)])
def test_access(serve, path, text, want):
    before = os.umask(0o077)
    try:
        serve(path, "--unix-socket-access", text)
    finally:
        os.umask(before)
    assert mode(path) == want


def test_leaving_cancels(serve, path):
    daemon = serve(path)
    conn, answer = open_stream(daemon, LONG)
    answer.close()
    conn.close()
    eventually(lambda: cancelled(daemon) == 1 and nothing_runs(daemon))


def test_connections_of_a_socket_have_no_address(serve, path):
    daemon = serve(path, "--max-connections-per-address", "1")
    held = [daemon.connection() for _ in range(5)]
    for conn in held:
        conn.request("GET", "/v1/models")
        assert conn.getresponse().read()
    assert daemon.metric("openmoed_connections_refused_total") == 0
    for conn in held:
        conn.close()


def test_a_socket_left_behind_is_replaced(serve, path):
    daemon = serve(path)
    daemon.process.kill()
    daemon.wait()
    assert path.exists()
    assert serve(path).get("/health")[0] == 200


def test_a_socket_in_use_is_not(serve, path):
    daemon = serve(path)
    assert "another server listens on it" in refused("--unix-socket", path)
    assert daemon.get("/health")[0] == 200
    # nor by one that is full: connections that nobody accepts
    busy = path.with_name("busy.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(busy))
        listener.listen(0)
        waiting = []
        for _ in range(8):
            s = socket.socket(socket.AF_UNIX)
            s.setblocking(False)
            try:
                s.connect(str(busy))
            except BlockingIOError:
                pass
            waiting.append(s)
        assert "another server listens on it" in refused("--unix-socket", busy)
        assert busy.exists()
        for s in waiting:
            s.close()


def test_other_files_are_left_alone(path):
    path.write_text("precious")
    assert "is no socket" in refused("--unix-socket", path)
    assert path.read_text() == "precious"
    path.unlink()
    target = path.with_name("target")
    target.write_text("precious")
    path.symlink_to(target)
    assert "is no socket" in refused("--unix-socket", path)
    assert target.read_text() == "precious"


def test_paths_that_cannot_be(tmp_path):
    assert "No such file" in refused("--unix-socket", tmp_path / "none" / "a.sock")
    assert "longer than 107 bytes" in refused("--unix-socket", "/" + 107 * "a")


def test_the_end_removes_only_its_own(serve, path):
    daemon = serve(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert path.exists()
