# SPDX-License-Identifier: Apache-2.0
"""Daemons that listen otherwise than on plain TCP, starts that must fail, and raw HTTP on a socket.

Certificates are made with the openssl command.
"""

import http.client
import re
import socket
import ssl
import subprocess

import conftest
from test_startup import TINY, run

SHORT = {"model": "test-model", "prompt": [0, 5, 6, 7], "ignore_eos": True, "temperature": 0,
         "max_tokens": 8}


class TlsDaemon(conftest.Daemon):
    """Over https; `tls` is the context that its clients use."""

    def __init__(self, tls, *flags, **more):
        self.tls = tls
        super().__init__(*flags, **more)

    @property
    def url(self):
        return f"https://{self.host}:{self.port}"

    def _wait_for_port(self):
        line = re.compile(r"listening on https://\S+:(\d+)")
        return int(self._until("port", lambda: line.search(self.log)).group(1))

    def connection(self, timeout=60):
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self.tls)

    def socket(self, tls=None):
        plain = socket.create_connection((self.host, self.port), timeout=30)
        return (tls or self.tls).wrap_socket(plain, server_hostname=self.host)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class UnixDaemon(conftest.Daemon):
    """On a unix socket."""

    def __init__(self, path, *flags, **more):
        self.path = str(path)
        super().__init__("--unix-socket", self.path, *flags, **more)

    def _wait_for_port(self):
        self._until("socket", lambda: f"listening on unix:{self.path}\n" in self.log)

    def connection(self, timeout=60):
        return UnixConnection(self.path, timeout)


def refused(*flags, **env):
    """The error that a start which fails logs last."""
    done = run("--model", TINY, "--port", "0", *flags, **env)
    assert done.returncode == 1, done
    assert "listening" not in done.stderr
    return re.sub(r"^\S+Z ERROR ", "", done.stderr.splitlines()[-1])


def read_answer(f):
    """Status, headers (lower case) and body of one answer with a length, from a socket's file."""
    line = f.readline()
    if not line:
        return None
    headers = {}
    while (field := f.readline().rstrip()):
        name, _, value = field.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(line.split()[1]), headers, f.read(int(headers["content-length"]))


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def client(trusted, **versions):
    """A TLS context that trusts this certificate alone."""
    context = ssl.create_default_context(cafile=str(trusted))
    for name, value in versions.items():
        setattr(context, name, value)
    return context
