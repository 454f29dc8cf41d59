# SPDX-License-Identifier: Apache-2.0
"""Measures the daemon as clients see it, on the demo model: starts it, loads it, reads /metrics, prints tables.

    build/venv/bin/python tests/load/served.py throughput    against the engine alone (build/bench/bench_chats)
    build/venv/bin/python tests/load/served.py turns         chats of 3 to 6 turns, with the prefix cache and without
    build/venv/bin/python tests/load/served.py overload      1,000 connections on pools for a handful

--short makes a quick check of each. Figures also go to build/served-NAME.csv. Exit status 1 when a request is lost,
an answer depends on the cache, memory does not come back, or anything stays behind.
"""
import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "integration"), str(HERE.parent / "reference")]
import conftest  # noqa: E402
import dialogues  # noqa: E402
import overload  # noqa: E402

BUILD = ROOT / "build"
NEW = 128                       # tokens of every answer of `throughput` (--new)
DEVICE = None                   # --device: of daemon and engine; None: the daemon's own choice, and the CPU
CHATS = {1: 24, 8: 12, 32: 6, 128: 4}   # at once: so many one after the other in each of that many places
GROWTH_KIB = 4096               # of memory from one round of `overload` to the next


class Failed(Exception):
    """Something that must not happen; the text says what."""


# ---- the daemon and the load ------------------------------------------------------------------------------------


def series(daemon):
    """Every series of /metrics that has no labels."""
    page = daemon.get("/metrics")[2].decode()
    pairs = (line.split() for line in page.split("\n") if line and line[0] != "#" and "{" not in line)
    return {name.removeprefix("openmoed_"): float(value) for name, value in pairs}


def loop_seconds(daemon):
    """CPU time of the daemon's first thread, which does everything but the steps."""
    pid = daemon.process.pid
    with open(f"/proc/{pid}/task/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """One run of chatload: its summary, its rows, and by how much the daemon's series and CPU time grew."""

    def __init__(self, daemon, *options):
        before, cpu = series(daemon), loop_seconds(daemon)
        with tempfile.TemporaryDirectory() as folder:
            files = ["--json", f"{folder}/load.json", "--csv", f"{folder}/load.csv"]
            command = [BUILD / "load" / "chatload", "--url", daemon.url, "--model", daemon.model, "--quiet", *files]
            done = subprocess.run([*command, *map(str, options)], capture_output=True, text=True)
            if done.returncode != 0:
                raise Failed(f"requests were lost:\n{done.stdout}{done.stderr}")
            with open(f"{folder}/load.json", encoding="utf-8") as f:
                self.summary = json.load(f)
            with open(f"{folder}/load.csv", encoding="utf-8") as f:
                self.rows = list(csv.DictReader(f))
        self.loop = loop_seconds(daemon) - cpu
        self.grown = {name: value - before[name] for name, value in series(daemon).items()}


def ended(daemon):
    if daemon.stop() != 0:
        raise Failed(f"the daemon ended badly:\n{daemon.log}")


def table(name, rows):
    """Prints rows (dictionaries with the same keys) and writes them to build/served-NAME.csv."""
    heads = list(rows[0])
    cells = [heads] + [[f"{v:.4g}" if isinstance(v, float) and abs(v) < 1000 else f"{v:.0f}"
                        if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    print()
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    with open(BUILD / f"served-{name}.csv", "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, heads)
        writer.writeheader()
        writer.writerows(rows)


# ---- throughput against the engine alone ------------------------------------------------------------------------


def alone(chats, prompt, cached, rounds):
    """Tokens a second and milliseconds a step of engine_step in a loop: medians over rounds of the same chats."""
    command = [BUILD / "bench" / "bench_chats", "--chats", chats, "--prompt", prompt, "--cached", cached, "--new", NEW,
               "--rounds", rounds, "--model", conftest.MODEL, *(["--device", DEVICE] if DEVICE else [])]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    return (statistics.median(float(r["tokens_per_s"]) for r in rows),
            statistics.median(float(r["step_ms"]) for r in rows))


def compare(daemon, chats, rounds, seed):
    """One served run and the engine alone right after it."""
    load = Load(daemon, "--chats", chats, "--total", chats * rounds, "--seed", seed, "--prompt-words", "fixed:20",
                "--max-tokens", f"fixed:{NEW}", "--ignore-eos")
    tokens, wall = load.summary["tokens"], load.summary["seconds"]
    answered, grown = load.summary["requests"]["answered"], load.grown
    if tokens["output"] != answered * NEW:
        raise Failed(f"{tokens['output']} tokens in {answered} answers of {NEW}")
    prompt = round(tokens["prompt"] / answered)
    cached = int(tokens["cached"] / answered) // 16 * 16
    rate, step_ms = alone(chats, prompt, cached, rounds)
    served = load.summary["per_second"]["output_tokens"]
    return {"chats": chats, "prompt": prompt, "cached": cached, "served tok/s": served, "alone tok/s": rate,
            "lost %": 100 * (1 - served / rate), "in steps %": 100 * grown["step_seconds_sum"] / wall,
            "rows/step": grown["step_tokens_total"] / grown["step_seconds_count"],
            "step ms": 1e3 * grown["step_seconds_sum"] / grown["step_seconds_count"], "alone step ms": step_ms,
            "loop thread %": 100 * load.loop / wall,
            "generator %": 100 * load.summary["generator_cpu_seconds"] / wall,
            **{f"{name} {cut} ms": load.summary[f"{name.lower()}_ms"][cut] for name in ("TTFT", "ITL")
               for cut in ("p50", "p99")}}


def throughput(short):
    print(f"""Served tokens a second of chats of one turn, answers of {NEW} tokens, against the engine alone
(engine_step in a loop over the same number of chats with the same prompts, cached beginnings and sampling),
one right after the other; of three such pairs the one with the middle loss, and what the others lost.
  lost %         1 - served / alone
  in steps %     of the served run, the share of time inside engine_step; the rest is between steps
  step ms        mean time of a step, served; beside it alone: what sharing the CPUs costs shows there
  loop thread %, generator %   CPU time of the HTTP thread and of chatload, of one CPU
  TTFT, ITL      time to the first token, and between tokens, as clients see them""")
    daemon = conftest.Daemon("--max-num-seqs", str(max(128, *CHATS)), *(["--device", DEVICE] if DEVICE else []))
    rows, seed = [], 0
    for chats, rounds in CHATS.items():
        pairs = []
        for _ in range(1 if short else 3):
            seed += 1
            Load(daemon, "--max-tokens", "fixed:1", "--seed", 1000 + seed)  # the system message is cached
            pairs.append(compare(daemon, chats, 2 if short else rounds, seed))
        pairs.sort(key=lambda p: p["lost %"])
        rows.append(pairs[len(pairs) // 2] | {"least lost": pairs[0]["lost %"], "most lost": pairs[-1]["lost %"]})
    table("throughput", rows)
    ended(daemon)


# ---- turns with and without the prefix cache --------------------------------------------------------------------


def write_chats(path, n):
    """Held-out dialogues of 3 to 6 turns."""
    fitting = (d for d in dialogues.held_out(4, 4 * n) if 3 <= len(d) // 2 <= 6)
    with open(path, "w", encoding="utf-8") as f:
        for one, _ in zip(fitting, range(n)):
            messages = [{"role": t["role"], "content": t["content"]} for t in one]
            f.write(json.dumps({"messages": messages}) + "\n")


def play_turns(path, caching, n):
    daemon = conftest.Daemon("--prefix-caching", caching)
    Load(daemon, "--prompt-words", "fixed:150", "--seed", 99)   # all memory of a step has been touched
    load = Load(daemon, "--file", path, "--chats", 16, "--total", n, "--temperature", 0, "--max-tokens", "fixed:64")
    ended(daemon)
    first = [float(r["ttft_ms"]) for r in load.rows if r["turn"] == "1"]
    later = [float(r["ttft_ms"]) for r in load.rows if r["turn"] != "1"]
    tokens, grown = load.summary["tokens"], load.grown
    answers = {(r["chat"], r["turn"]): r["completion_tokens"] for r in load.rows}
    row = {"cache": caching, "requests": len(load.rows), "prompt tokens": int(tokens["prompt"]),
           "computed": int(grown["prompt_tokens_total"]),
           "hits %": 100 * grown["prefix_hit_tokens_total"] / max(1, grown["prefix_queried_tokens_total"]),
           "tok/s": load.summary["per_second"]["output_tokens"], "seconds": load.summary["seconds"]}
    for name, times in (("turn 1", first), ("later", later)):
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        row |= {f"TTFT {name}": statistics.fmean(times), f"p50 {name}": cuts[49], f"p99 {name}": cuts[98]}
    return row, answers


def turns(short):
    n = 24 if short else 200
    print(f"""{n} chats of 3 to 6 turns, 16 at once, each turn with all before it, greedy.
  prompt tokens  of all requests together; computed: those the engine computed
  hits %         of the prompt tokens looked up in the cache, those found
  TTFT, p50, p99 milliseconds to the first token: mean, median, 99th percentile; of turn 1 and of later turns""")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_chats(f"{folder}/chats.jsonl", n)
        for _ in range(1 if short else 2):
            on, answers_on = play_turns(f"{folder}/chats.jsonl", "on", n)
            off, answers_off = play_turns(f"{folder}/chats.jsonl", "off", n)
            rows += [on, off]
            if answers_on != answers_off or on["prompt tokens"] != off["prompt tokens"]:
                raise Failed("answers with the cache differ from those without")
            if off["computed"] != off["prompt tokens"] or on["computed"] >= off["computed"]:
                raise Failed("prompt tokens computed do not add up")
    table("turns", rows)


# ---- overload ---------------------------------------------------------------------------------------------------


def overloaded(short):
    connections, seconds = (200, 3) if short else (1000, 20)
    print(f"""{connections} connections at once for {seconds} s, twice: 4 sequences run, 64 may wait, keys and values have
room for 64 blocks of 16 tokens. Prompts and answers of 1 to 200 words and tokens; a third of the requests is
given up midway, one in fifty can never fit.
  200            whole answers; 429: told to come back; 400: can never fit; vanished: given up by the client
  peak, after    resident memory of the daemon, MiB; descriptors likewise
  left           of sequences, waiting tokens and KV blocks, what is still there""")
    daemon = conftest.Daemon("--max-num-seqs", "4", "--max-queued-requests", "64", "--kv-cache-memory", "4608K")
    rounds = [overload.Round(daemon, 4, 2, seed=0)]     # touches all memory that steps use
    rounds += [overload.Round(daemon, connections, seconds, seed=i) for i in (1, 2)]
    rows = [{"connections": c, "seconds": r.seconds, **{k: r.tally[k] for k in ("200", "429", "400", "vanished", "lost")},
             "peak MiB": r.peak_kib / 1024, "after MiB": r.after_kib / 1024, "descriptors": r.descriptors,
             "after": r.after_descriptors, "left": sum(r.left.values())}
            for c, r in zip((4, connections, connections), rounds)]
    table("overload", rows)
    _, first, second = rounds
    ended(daemon)
    for one in rounds:
        if one.lost or one.left:
            raise Failed(f"lost: {dict(one.lost)}; left behind: {one.left}")
    if second.after_kib > first.after_kib + GROWTH_KIB:
        raise Failed(f"memory grew from {first.after_kib} to {second.after_kib} KiB")


def main():
    global BUILD, CHATS, DEVICE, NEW
    what = {"throughput": throughput, "turns": turns, "overload": overloaded}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=what)
    parser.add_argument("--short", action="store_true", help="a quick check instead of a measurement")
    parser.add_argument("--build", type=pathlib.Path, default=BUILD, help="folder of the programs (default: build)")
    parser.add_argument("--device", help="throughput: where daemon and engine run, cpu or cuda")
    parser.add_argument("--chats", type=lambda text: [int(n) for n in text.split(",")], help="throughput: how many")
    parser.add_argument("--new", type=int, default=NEW, help="throughput: tokens of an answer")
    args = parser.parse_args()
    BUILD, DEVICE, NEW = args.build.resolve(), args.device, args.new
    if args.chats:
        CHATS = {n: 4 if n > 32 else 12 for n in args.chats}
    conftest.BINARY = str(BUILD / "openmoed")
    try:
        for name in args.what:
            what[name](args.short)
    except Failed as e:
        sys.exit(f"FAILED: {e}")


if __name__ == "__main__":
    main()
