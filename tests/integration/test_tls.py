# SPDX-License-Identifier: Apache-2.0
"""TLS: versions, chains, streams and clients that leave, files that are wrong, and the certificate read
again on SIGHUP while connections go on."""

import json
import os
import signal
import socket
import ssl
import threading

import openai
import pytest

from client import eventually
from listeners import SHORT, TlsDaemon, client, openssl, read_answer, refused
from test_http import LONG, cancelled, error_of, events, nothing_runs, open_stream, post_bytes

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


class Files:
    """Certificates and keys in one folder, by name."""

    def __init__(self, folder):
        self.folder = folder

    def cert(self, name):
        return self.folder / f"{name}.crt"

    def key(self, name):
        return self.folder / f"{name}.key"

    def make(self, name, kind="ec", issuer=None, authority=False):
        """A certificate for 127.0.0.1, or of an authority; self-signed without an issuer."""
        how = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["rsa:2048"],
               "ed25519": ["ed25519"]}[kind]
        sign = ["-CA", self.cert(issuer), "-CAkey", self.key(issuer)] if issuer else []
        what = "basicConstraints=critical,CA:TRUE" if authority else NAMES
        openssl("req", "-x509", "-newkey", *how, "-nodes", "-keyout", self.key(name), "-out",
                self.cert(name), "-days", "30", "-subj", f"/CN={name}", "-addext", what, *sign)
        self.key(name).chmod(0o600)

    def flags(self, cert, key=None):
        return ["--tls-cert", str(self.cert(cert)), "--tls-key", str(self.key(key or cert))]


def make_chain(files):
    files.make("root", authority=True)
    files.make("middle", issuer="root", authority=True)
    files.make("leaf", issuer="middle")


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    made = Files(tmp_path_factory.mktemp("tls"))
    made.make("server")
    return made


@pytest.fixture(scope="module")
def tls(shared):
    """One daemon over TLS for every test that leaves it running."""
    running = TlsDaemon(client(shared.cert("server")), *shared.flags("server"))
    yield running
    assert running.stop() == 0, running.log


@pytest.fixture
def serve():
    """serve(context, *flags): a daemon of the test's own."""
    running = []

    def begin(*args, **more):
        running.append(TlsDaemon(*args, **more))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


# ---- what is spoken


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(tls, shared, version):
    context = client(shared.cert("server"), minimum_version=version, maximum_version=version)
    with tls.socket(context) as s:
        assert s.version() == version.name.replace("_", ".")
        s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_answer(s.makefile("rb"))[0] == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_are_refused(tls, shared):
    context = client(shared.cert("server"), minimum_version=ssl.TLSVersion.TLSv1,
                     maximum_version=ssl.TLSVersion.TLSv1_1)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        tls.socket(context).close()
    assert tls.get("/health")[0] == 200


def test_plain_http_gets_no_answer(tls):
    with socket.create_connection((tls.host, tls.port), timeout=30) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        try:
            while (piece := s.recv(4096)):
                answer += piece
        except ConnectionError:
            pass
    assert b"HTTP/" not in answer
    assert tls.get("/health")[0] == 200


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_kinds_of_keys(files, serve, kind):
    files.make("server", kind)
    daemon = serve(client(files.cert("server")), *files.flags("server"))
    assert daemon.get("/v1/models")[0] == 200


@pytest.mark.parametrize("order", ["leaf middle root", "leaf middle", "leaf root middle"])
def test_chain(files, serve, order):
    make_chain(files)
    together = b"".join(files.cert(name).read_bytes() for name in order.split())
    files.cert("chain").write_bytes(together)
    daemon = serve(client(files.cert("root")), *files.flags("chain", "leaf"))
    assert daemon.get("/health")[0] == 200


def test_openai_client(tls):
    api = openai.OpenAI(base_url=tls.url + "/v1", api_key="none", max_retries=0,
                        http_client=openai.DefaultHttpxClient(verify=tls.tls))
    messages = [{"role": "user", "content": "My cat is called Biscuit."}]
    ask = {"model": tls.model, "messages": messages, "temperature": 0}
    whole = api.chat.completions.create(**ask).choices[0].message.content
    pieces = [c.choices[0].delta.content or "" for c in api.chat.completions.create(**ask, stream=True)]
    assert whole == "".join(pieces) and "Biscuit" in whole and len(pieces) > 5


# ---- how it behaves


def test_bodies_of_all_sizes(tls):
    """Around the size of a record, and large enough for a worker."""
    text = json.dumps(SHORT)
    for size in (16383, 16384, 16385, 40000, 200000, 3000000):
        answer = tls.request("POST", "/v1/completions", text + " " * (size - len(text)))
        assert (answer[0], json.loads(answer[2])["usage"]["completion_tokens"]) == (200, 8), size
    with tls.socket() as s:
        s.sendall(post_bytes("/v1/completions", b"", "Content-Length: 6000000"))
        assert read_answer(s.makefile("rb"))[0] == 413


def test_keep_alive_over_errors_and_streams(tls):
    conn = tls.connection()
    for _ in range(3):
        for body, want in ((SHORT, 200), ({**SHORT, "prompt": 1.5}, 400), ({**SHORT, "stream": True}, 200)):
            conn.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            sock = conn.sock
            answer = conn.getresponse()
            assert answer.status == want
            assert b"data: [DONE]" in answer.read() or "stream" not in body
            assert conn.sock is sock
    conn.close()


def test_pipelined_requests_in_one_record(tls):
    body = json.dumps(SHORT).encode()
    one = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    two = post_bytes("/v1/completions", body, f"Content-Length: {len(body)}")
    with tls.socket() as s:
        s.sendall(one + two + one)
        f = s.makefile("rb")
        assert [read_answer(f)[0] for _ in range(3)] == [200, 200, 200]


def test_64_streams_at_once(tls):
    results = [None] * 64

    def ask(i):
        conn, answer = open_stream(tls, {**SHORT, "prompt": [0, i + 5], "max_tokens": 50, "stream": True})
        results[i] = events(answer)[-1]
        conn.close()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(64)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == ["[DONE]"] * 64
    eventually(lambda: nothing_runs(tls))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["close", "notify", "reset"])
def test_leaving_cancels(tls, how, stream):
    """With a close alert, with the end of the TCP stream alone, and with a reset."""
    before, tokens = cancelled(tls), tls.metric("openmoed_generated_tokens_total")
    body = json.dumps({**LONG, "stream": stream}).encode()
    s = tls.socket()
    s.sendall(post_bytes("/v1/completions", body, f"Content-Length: {len(body)}"))
    eventually(lambda: tls.metric("openmoed_requests_running") == 1)
    if stream:
        assert s.recv(100).startswith(b"HTTP/1.1 200")
    if how == "notify":
        s.setblocking(False)
        with pytest.raises(ssl.SSLError):
            s.unwrap()  # sends the alert; then it would read the other side's
        s.shutdown(socket.SHUT_WR)
    elif how == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        s.close()
    else:
        s.close()
    eventually(lambda: cancelled(tls) == before + 1 and nothing_runs(tls))
    assert tls.metric("openmoed_generated_tokens_total") - tokens < 900
    s.close()


HELLO_BEGINS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def first_flight(daemon):
    """A connection on which a whole client hello was sent, and nothing after it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = daemon.tls.wrap_bio(incoming, outgoing, server_hostname=daemon.host)
    with pytest.raises(ssl.SSLWantReadError):
        half.do_handshake()
    s = socket.create_connection((daemon.host, daemon.port), timeout=30)
    s.sendall(outgoing.read())
    return s


def test_slow_handshakes_are_cut(files, serve):
    files.make("server")
    daemon = serve(client(files.cert("server")), *files.flags("server"), "--header-timeout", "1")
    part = socket.create_connection((daemon.host, daemon.port), timeout=30)
    part.sendall(HELLO_BEGINS)
    for s in (part, first_flight(daemon), socket.create_connection((daemon.host, daemon.port), timeout=30)):
        while s.recv(4096):  # the server's part of the handshake, then the end
            pass
        s.close()
    assert daemon.get("/health")[0] == 200


def test_handshakes_that_wait_cost_nothing(files, serve):
    """They neither keep the loop busy nor get in the way of others."""
    files.make("server")
    daemon = serve(client(files.cert("server")), *files.flags("server"), "--header-timeout", "600")
    waiting = [first_flight(daemon) for _ in range(20)]
    for _ in range(20):
        waiting.append(socket.create_connection((daemon.host, daemon.port), timeout=30))
        waiting[-1].sendall(HELLO_BEGINS)
    for _ in range(5):
        plain = socket.create_connection((daemon.host, daemon.port), timeout=30)
        s = daemon.tls.wrap_socket(plain.dup(), server_hostname=daemon.host)
        s.sendall(b"GET /health HTTP/1.1\r\n")  # a header begins ...
        plain.sendall(b"\x17\x03\x03\x01\x00half")  # ... and a record
        waiting += [s, plain]
    eventually(lambda: daemon.metric("openmoed_connections") == 46)

    def loops():
        """Times that the loop thread has slept."""
        with open(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("voluntary"))

    def cpu():
        with open(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/stat", encoding="ascii") as f:
            return sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    before, slept = cpu(), loops()
    eventually(lambda: loops() >= slept + 8)  # two seconds of ticks
    assert cpu() - before < 0.5
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    for s in waiting:
        s.close()


def test_a_handshake_in_pieces(tls):
    """One byte at a time, as no client does."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = tls.tls.wrap_bio(incoming, outgoing, server_hostname=tls.host)
    with socket.create_connection((tls.host, tls.port), timeout=30) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send():
            for byte in outgoing.read():
                s.sendall(bytes([byte]))

        while True:
            try:
                half.do_handshake()
                break
            except ssl.SSLWantReadError:
                send()
                incoming.write(s.recv(65536))
        half.write(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        send()
        answer = b""
        while b'"ok"' not in answer:
            try:
                answer += half.read()
            except ssl.SSLWantReadError:
                incoming.write(s.recv(65536))
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_drain_finishes_streams(files, serve):
    files.make("server")
    daemon = serve(client(files.cert("server")), *files.flags("server"), "--drain-timeout", "600")
    conn, answer = open_stream(daemon, {**LONG, "n": 2})
    daemon.signal(signal.SIGTERM)
    eventually(lambda: daemon.get("/health")[0] == 503)
    assert events(answer)[-1] == "[DONE]"
    assert daemon.wait() == 0
    conn.close()


# ---- files that are wrong


def test_bad_files_are_refused_at_start(files):
    files.make("a")
    files.make("b")
    assert "--tls-cert and --tls-key need each other" in refused("--tls-cert", files.cert("a"))
    assert "--tls-cert and --tls-key need each other" in refused("--tls-key", files.key("a"))
    line = refused(*files.flags("a", "b"))
    assert str(files.key("b")) in line and "does not belong to" in line and str(files.cert("a")) in line
    line = refused("--tls-cert", files.cert("none"), "--tls-key", files.key("a"))
    assert str(files.cert("none")) in line and "No such file" in line
    line = refused("--tls-cert", files.cert("a"), "--tls-key", files.folder)
    assert str(files.folder) in line and "not a regular file" in line
    for text in ("", "nothing", files.key("a").read_text(), files.cert("a").read_text()[:200]):
        files.cert("bad").write_text(text)
        line = refused(*files.flags("bad", "a"))
        assert str(files.cert("bad")) in line and "no certificate in PEM" in line
    for text in ("", "nothing", files.cert("a").read_text()):
        files.key("bad").write_text(text)
        line = refused(*files.flags("a", "bad"))
        assert str(files.key("bad")) in line and "no private key in PEM" in line


@pytest.mark.parametrize("form", ["-des3", "-aes128"])
def test_an_encrypted_key_is_refused(files, form):
    files.make("a")
    if form == "-aes128":  # PKCS#8; the other form is the older one of EC keys
        openssl("pkcs8", "-topk8", "-v2", "aes128", "-in", files.key("a"), "-out", files.key("locked"),
                "-passout", "pass:x")
    else:
        openssl("ec", form, "-in", files.key("a"), "-out", files.key("locked"), "-passout", "pass:x")
    line = refused(*files.flags("a", "locked"))
    assert str(files.key("locked")) in line and "encrypted" in line


def test_dates_and_access_are_warnings(files, serve):
    files.make("old")
    openssl("req", "-new", "-key", files.key("old"), "-subj", "/CN=old", "-out", files.folder / "old.csr")
    openssl("x509", "-req", "-in", files.folder / "old.csr", "-signkey", files.key("old"), "-days", "-1",
            "-out", files.cert("old"))
    files.key("old").chmod(0o644)
    context = client(files.cert("old"))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    daemon = serve(context, *files.flags("old"))
    assert f"WARN {files.cert('old')}: the certificate expired on 2" in daemon.log
    assert f"WARN {files.key('old')}: other users may read" in daemon.log
    assert daemon.get("/health")[0] == 200


# ---- the files read again


def subject(s):
    return dict(field[0] for field in s.getpeercert()["subject"])["commonName"]


def reload(daemon, count):
    daemon.signal(signal.SIGHUP)
    eventually(lambda: daemon.log.count("tls: certificates=") == count)


def test_reload(files, serve):
    for name in ("first", "second", "other"):
        files.make(name)
    files.cert("both").write_bytes(files.cert("first").read_bytes() + files.cert("second").read_bytes())
    for part in (files.cert, files.key):
        part("live").write_bytes(part("first").read_bytes())
    files.key("live").chmod(0o600)
    daemon = serve(client(files.cert("both")), *files.flags("live"))

    kept = daemon.socket()
    conn, answer = open_stream(daemon, {**LONG, "n": 4})
    early = socket.create_connection((daemon.host, daemon.port), timeout=30)
    eventually(lambda: daemon.metric("openmoed_connections") == 4)
    for part in (files.cert, files.key):
        part("live").write_bytes(part("second").read_bytes())
    reload(daemon, 2)

    with daemon.socket() as s:
        assert subject(s) == "second"
    # a connection that was there goes on, and one whose handshake comes now has what it began with
    assert subject(kept) == "first"
    kept.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert read_answer(kept.makefile("rb"))[0] == 200
    with daemon.tls.wrap_socket(early, server_hostname=daemon.host) as s:
        assert subject(s) == "first"
    assert events(answer)[-1] == "[DONE]"
    conn.close()

    # a bad pair changes nothing, whichever half is bad
    files.key("live").write_bytes(files.key("other").read_bytes())
    daemon.signal(signal.SIGHUP)
    eventually(lambda: "the certificate known so far stays in force" in daemon.log)
    assert "does not belong to the first certificate" in daemon.log
    files.cert("live").unlink()
    daemon.signal(signal.SIGHUP)
    eventually(lambda: daemon.log.count("stays in force") == 2)
    with daemon.socket() as s:
        assert subject(s) == "second"
    kept.close()


def test_one_bad_file_does_not_hold_back_the_other(files, serve):
    """Keys and certificate are read again each by itself."""
    files.make("server")
    keys = files.folder / "keys.json"
    keys.write_text('{"tenants": []}')
    keys.chmod(0o600)
    daemon = serve(client(files.cert("server")), *files.flags("server"), "--api-key-file", str(keys))
    keys.write_text("{")
    reload(daemon, 2)
    assert "the keys known so far stay in force" in daemon.log
    answer = daemon.get("/v1/models")
    assert answer[0] == 401
    error_of(answer[2])


def test_reloads_under_load(files, serve):
    """Handshakes and reloads at once: every connection gets one certificate or the other, whole."""
    for name in ("first", "second"):
        files.make(name)
    files.cert("both").write_bytes(files.cert("first").read_bytes() + files.cert("second").read_bytes())
    for part in (files.cert, files.key):
        part("live").write_bytes(part("first").read_bytes())
    daemon = serve(client(files.cert("both")), *files.flags("live"))
    seen, failed, stop = set(), [], threading.Event()

    def connect():
        while not stop.is_set():
            try:
                with daemon.socket() as s:
                    seen.add(subject(s))
                    s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert read_answer(s.makefile("rb"))[0] == 200
            except (OSError, AssertionError, TypeError) as e:
                failed.append(e)

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for t in threads:
        t.start()
    done = 1
    for i in range(20):
        name = ("second", "first")[i % 2]
        files.cert("live").write_bytes(files.cert(name).read_bytes())
        files.key("live").write_bytes(files.key(name).read_bytes())
        done += 1
        reload(daemon, done)
        eventually(lambda name=name: name in seen or failed)
    stop.set()
    for t in threads:
        t.join()
    assert not failed and seen == {"first", "second"}
