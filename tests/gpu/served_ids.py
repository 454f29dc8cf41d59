# SPDX-License-Identifier: Apache-2.0
"""What the daemon adds to a step, with dummy weights of a real model's shape: served tokens a second of streamed
/v1/completions with random token ids as prompts (a preset has no tokenizer, so no chats), against the engine alone
(bench_chats) with as many sequences of the same lengths. Needs the standard library alone.

    python3 tests/gpu/served_ids.py --build build/gpu-kit [--model 8b] [--device cuda] [--chats 1,64,256] [--csv FILE]
"""
import argparse
import csv
import http.client
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

VOCAB = 256000                  # ids below it are asked for
START_SECONDS = 90


class Daemon:
    def __init__(self, args):
        self.log = tempfile.TemporaryFile("w+b")
        command = [args.build / "openmoed", "--model", args.model, "--load-format", "dummy", "--dtype", "bf16",
                   "--device", args.device, "--port", 0, "--max-num-seqs", max(args.chats), "--max-queued-requests",
                   1024, "--max-num-batched-tokens", args.step_tokens, "--served-model-name", "dummy"]
        self.process = subprocess.Popen([*map(str, command)], stdout=self.log, stderr=self.log)
        end = time.monotonic() + START_SECONDS
        self.port = None
        while " ready: " not in self.text():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                sys.exit(f"FAILED: the daemon did not come up:\n{self.text()[-2000:]}")
            time.sleep(0.1)
        self.port = int(re.search(r"listening on http://\S+:(\d+)", self.text()).group(1))

    def text(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def one(port, ids, new, seed, out):
    """One streamed answer; appends (seconds to the first event, gaps between events, tokens), or the error's text."""
    try:
        start = time.perf_counter()
        conn = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {"model": "dummy", "prompt": ids, "max_tokens": new, "stream": True, "ignore_eos": True, "seed": seed,
                "stream_options": {"include_usage": True}}
        conn.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = conn.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}: {answer.read(300)!r}")
        times, last, usage = [], b"", b""
        for line in answer:
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
                usage, last = line, usage
        conn.close()
        tokens = json.loads(usage[6:])["usage"]["completion_tokens"]
        times = times[:-1] or times         # the last event is the usage
        out.append((times[0] - start, [b - a for a, b in zip(times, times[1:])], tokens))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError) as e:
        out.append(f"{type(e).__name__}: {e}")


def serve(port, chats, args):
    """Answers of `chats` clients at once, each one after the other, --rounds times: seconds, and all answers."""
    out, draw = [], random.Random(chats)
    ids = lambda: [draw.randrange(3, VOCAB) for _ in range(args.prompt)]
    prompts = [[ids() for _ in range(args.rounds)] for _ in range(chats)]

    def client(number):
        for i, prompt in enumerate(prompts[number]):
            one(port, prompt, args.new, number * 1000 + i, out)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(chats)]
    start = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return time.perf_counter() - start, out


def alone(chats, args):
    command = [args.build / "bench" / "bench_chats", "--model", args.model, "--device", args.device, "--chats", chats,
               "--prompt", args.prompt, "--new", args.new, "--rounds", args.rounds, "--step-tokens", args.step_tokens]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FAILED: the engine alone:\n{done.stderr}")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    return statistics.median(float(r["tokens_per_s"]) for r in rows)


def cut(values, share):
    values = sorted(values)
    return 1e3 * values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"))
    parser.add_argument("--model", default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--chats", type=lambda text: [int(n) for n in text.split(",")], default=[1, 64, 256])
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--step-tokens", type=int, default=4096)
    parser.add_argument("--csv")
    args = parser.parse_args()
    args.build = args.build.resolve()
    daemon, rows = Daemon(args), []
    try:
        serve(daemon.port, min(args.chats), args)       # warms up
        for chats in args.chats:
            seconds, answers = serve(daemon.port, chats, args)
            wrong = [a for a in answers if isinstance(a, str)] + [a for a in answers if a[2] != args.new]
            if wrong:
                sys.exit(f"FAILED: {len(wrong)} of {len(answers)} answers: {wrong[0]}")
            first, gaps = [a[0] for a in answers], [g for a in answers for g in a[1]]
            rows.append({"chats": chats, "served tok/s": chats * args.rounds * args.new / seconds,
                         "TTFT p50 ms": cut(first, .5), "TTFT p99 ms": cut(first, .99),
                         "ITL p50 ms": cut(gaps, .5), "ITL p99 ms": cut(gaps, .99)})
    finally:
        if daemon.stop() != 0:
            print(f"the daemon ended with {daemon.process.returncode}", file=sys.stderr)
    for row in rows:
        row["alone tok/s"] = alone(row["chats"], args)
        row["lost %"] = 100 * (1 - row["served tok/s"] / row["alone tok/s"])
    print("  ".join(f"{name:>12}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:12.2f}" for value in row.values()))
    print(f"{rows[-1]['served tok/s']:.0f} tokens/s served to {rows[-1]['chats']} clients, {rows[-1]['lost %']:.1f}% "
          "less than the engine alone")
    if args.csv:
        with open(args.csv, "w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
