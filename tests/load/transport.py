# SPDX-License-Identifier: Apache-2.0
"""Measures the HTTP side of the daemon on the demo model: starts it, loads it, prints tables.

    build/venv/bin/python tests/load/transport.py tls        streams over TLS and without, 1 and 256 at once
    build/venv/bin/python tests/load/transport.py large      the loop thread while prompts of 5 MB arrive beside it

--short makes a quick check of each. Figures also go to build/served-NAME.csv. Exit status 1 when a request is lost.
"""
import argparse
import json
import multiprocessing
import pathlib
import re
import socket
import statistics
import sys
import tempfile
import time

import served
from served import Failed, Load, ended, table

import conftest  # from tests/integration, as the next two
from listeners import TlsDaemon, client, read_answer
from test_tls import Files

NEW = 64                # tokens of every answer
MEGABYTES = 5


# ---- streams over TLS and without -------------------------------------------------------------------------------


def handshakes(daemon, n):
    """Milliseconds from connect to the first byte of an answer, on n new connections: median and 99th percentile."""
    times = []
    for _ in range(n):
        began = time.perf_counter()
        conn = daemon.connection()
        conn.request("GET", "/health")
        conn.getresponse().read()
        conn.close()
        times.append(1e3 * (time.perf_counter() - began))
    return quantiles(times)


def quantiles(times):
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return cuts[49], cuts[98]


def stream_row(name, daemon, streams, total, *options):
    load = Load(daemon, "--chats", streams, "--total", total, "--prompt-words", "fixed:10", "--ignore-eos",
                "--max-tokens", f"fixed:{NEW}", *options)
    events = load.summary["tokens"]["output"]
    ttft = quantiles([float(r["ttft_ms"]) for r in load.rows])
    new_median, new_late = handshakes(daemon, 200)
    return {"": name, "streams": streams, "tok/s": load.summary["per_second"]["output_tokens"], "TTFT p50": ttft[0],
            "p99": ttft[1], "loop us/token": 1e6 * load.loop / events,
            "loop thread %": 100 * load.loop / load.summary["seconds"],
            "generator %": 100 * load.summary["generator_cpu_seconds"] / load.summary["seconds"],
            "new connection p50": new_median, "p99 ": new_late}


def tls(short):
    print(f"""Streams of {NEW} tokens, one event a token, over plain TCP and over TLS 1.3 (a P-256 certificate), in turn; medians.
  TTFT           milliseconds to the first token
  loop us/token  CPU time of the HTTP thread for each token, microseconds; then its share of one CPU, and chatload's
  new connection milliseconds to the answer of /health on a connection of its own, handshake included""")
    flags = ("--max-num-seqs", "256", "--max-queued-requests", "512")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = Files(pathlib.Path(folder))
        files.make("server")
        daemons = {"plain": (conftest.Daemon(*flags), ()),
                   "TLS": (TlsDaemon(client(files.cert("server")), *files.flags("server"), *flags),
                           ("--cacert", files.cert("server")))}
        for streams, total in ((1, 8 if short else 60), (256, 256 if short else 1024)):
            runs = {name: [] for name in daemons}
            for _ in range(1 if short else 3):
                for name, (daemon, options) in daemons.items():
                    Load(daemon, "--max-tokens", "fixed:1", *options)   # the system message is cached
                    runs[name].append(stream_row(name, daemon, streams, total, *options))
            for name, some in runs.items():
                rows.append({k: v if isinstance(v, (str, int)) else statistics.median(r[k] for r in some)
                             for k, v in some[0].items()})
        for daemon, _ in daemons.values():
            ended(daemon)
    table("tls", rows)


# ---- large prompts beside everything else -----------------------------------------------------------------------


def bodies():
    """Prompts of 5 MB: words, token ids, and a text that asks for the most work for its size."""
    size = MEGABYTES * 1000 * 1000
    text = "the time of the house was green and seven people came " * (size // 54)
    ids = [i % 1000 + 5 for i in range(250000)]
    return {"chat of words": ("/v1/chat/completions", {"model": "test-model", "messages": [{"role": "user", "content": text}]}),
            "token ids": ("/v1/completions", {"model": "test-model", "prompt": ids, "user": "x" * (size - 1200000)}),
            "[1,1,1,...": ("/v1/completions", b'{"prompt":[' + b"1," * (size // 2) + b"1]}")}


def upload(host, port, path, body, stop, count):
    """Sends the body again and again over one connection, as fast as it is taken; every answer is a clean refusal."""
    with socket.create_connection((host, port)) as s:
        f = s.makefile("rb")
        while not stop.is_set():
            s.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                      % (path.encode(), len(body)) + body)
            answer = read_answer(f)
            if answer is None or answer[0] != 400:
                raise SystemExit(f"an upload was answered with {answer}")
            with count.get_lock():
                count.value += 1


def round_trips(daemon, seconds):
    """Milliseconds of GET /health over one connection, one every 2 ms."""
    times = []
    with socket.create_connection((daemon.host, daemon.port)) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        f = s.makefile("rb")
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            if read_answer(f)[0] != 200:
                raise Failed("/health failed")
            done = time.perf_counter()
            times.append(1e3 * (done - now))
            time.sleep(max(0, 0.002 - (done - now)))
    return times


def delivery(daemon):
    """Buckets of openmoed_token_delivery_seconds: upper bound -> tokens."""
    page = daemon.get("/metrics")[2].decode()
    found = re.findall(r'^openmoed_token_delivery_seconds_bucket\{le="(\S+)"\} (\d+)$', page, re.M)
    return {float(bound): int(n) for bound, n in found}


def delivered(before, after, share):
    """Milliseconds within which this share of the tokens between two looks was delivered: a bucket's bound."""
    grown = {bound: n - before[bound] for bound, n in after.items()}
    whole = grown[float("inf")]
    return 1e3 * min(bound for bound, n in grown.items() if n >= share * whole)


def large_row(name, daemon, seconds, path, body):
    stop, count = multiprocessing.Event(), multiprocessing.Value("i", 0)
    sender = multiprocessing.Process(target=upload, args=(daemon.host, daemon.port, path, body, stop, count))
    if body:
        sender.start()
    before, loop = delivery(daemon), served.loop_seconds(daemon)
    times = round_trips(daemon, seconds)
    after, loop = delivery(daemon), served.loop_seconds(daemon) - loop
    if body:
        stop.set()
        sender.join()
        if sender.exitcode != 0 or count.value == 0:
            raise Failed(f"{name}: no upload was answered as it should be")
    p50, p99 = quantiles(times)
    return {"beside": name, "uploads": count.value, "round trips": len(times), "p50": p50, "p99": p99,
            "max": max(times), "token p99 <=": delivered(before, after, 0.99), "loop thread %": 100 * loop / seconds}


def large(short):
    seconds = 2 if short else 20
    print(f"""GET /health every 2 ms over one connection for {seconds} s while a prompt of {MEGABYTES} MB arrives over another, again
and again; and two chats are streamed all the time. (Every such prompt is refused: it is longer than the context.)
  p50, p99, max  milliseconds of a round trip
  token p99 <=   milliseconds from the end of a step to the socket, for 99% of the tokens (a bucket of the histogram)""")
    daemon = conftest.Daemon("--max-body-size", "16M", "--threads", "1")
    rows = []
    stop = multiprocessing.Event()
    chats = [multiprocessing.Process(target=chat, args=(daemon.host, daemon.port, stop)) for _ in range(2)]
    for one in chats:
        one.start()
    time.sleep(0.5)
    for name, (path, body) in {"nothing": ("", b""), **bodies()}.items():
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        rows.append(large_row(name, daemon, seconds, path, body))
    stop.set()
    for one in chats:
        one.join()
        if one.exitcode != 0:
            raise Failed("a chat was lost")
    table("large", rows)
    ended(daemon)


def chat(host, port, stop):
    """Streams, one after the other."""
    body = json.dumps({"model": "test-model", "prompt": [0, 5, 6, 7], "ignore_eos": True, "max_tokens": 500,
                       "stream": True}).encode()
    while not stop.is_set():
        with socket.create_connection((host, port)) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                      b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            last = b""
            while (piece := s.recv(65536)):
                last = (last + piece)[-100:]
            if b"data: [DONE]" not in last:
                raise SystemExit("a stream broke")


def main():
    what = {"tls": tls, "large": large}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=what)
    parser.add_argument("--short", action="store_true", help="a quick check instead of a measurement")
    parser.add_argument("--build", type=pathlib.Path, default=served.BUILD,
                        help="folder of the programs (default: build)")
    args = parser.parse_args()
    served.BUILD = args.build
    conftest.BINARY = str(args.build / "openmoed")
    try:
        for name in args.what:
            what[name](args.short)
    except Failed as e:
        sys.exit(f"FAILED: {e}")


if __name__ == "__main__":
    main()
