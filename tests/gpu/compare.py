# SPDX-License-Identifier: Apache-2.0
"""The engine beside PyTorch and beside what is aimed at, from the CSV files of check-gpu.sh in one folder.

    python3 tests/gpu/compare.py FOLDER
"""
import csv
import pathlib
import sys


def read(path):
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def target(text, value, wanted, at_least=True):
    if value is None or value == 0:
        print(f"  {text:58} NOT KNOWN (wanted {wanted})")
        return
    met = value >= wanted if at_least else value <= wanted
    print(f"  {text:58} {value:8.2f}  {'met' if met else 'MISSED'} (wanted {wanted})")


def main():
    folder = pathlib.Path(sys.argv[1])
    key = lambda r: (r["what"], int(r["batch"]), int(r["length"]))
    ours = {key(r): r for r in read(folder / "engine.csv")}
    peer = {key(r): r for r in read(folder / "peer.csv")}
    print(f"{'':8}{'batch':>6}{'length':>8}{'engine ms':>12}{'share':>7}{'PyTorch ms':>12}{'share':>7}"
          f"{'times as fast':>15}")
    for (what, batch, length), r in ours.items():
        other = peer.get((what, batch, length))
        line = f"{what:8}{batch:6}{length:8}{float(r['ms']):12.3f}{float(r['share']):7.2f}"
        if other:
            line += f"{float(other['ms']):12.3f}{float(other['share']):7.2f}{float(other['ms']) / float(r['ms']):15.2f}"
        print(line)
    share = lambda *k: float(ours[k]["share"]) if k in ours else None
    faster = [float(peer[k]["ms"]) / float(r["ms"]) for k, r in ours.items() if k in peer and k[0] == "decode"]
    print("\nwhat is aimed at:")
    for length in (512, 1500):
        target(f"decode, batch 1, context {length}: share of the memory floor", share("decode", 1, length), 0.75)
        for batch in (64, 256):
            target(f"decode, batch {batch}, context {length}: share of the floor", share("decode", batch, length), 0.6)
    target("prefill of 2048 tokens: share of the GEMM rate", share("prefill", 1, 2048), 0.5)
    target("decode, the least of all batches: times PyTorch", min(faster, default=None), 2)
    for name, file in (("demo model", "served.csv"), ("8b shape", "served-8b.csv")):
        for r in read(folder / file):
            target(f"served, {name}, {r['chats']} chats: % lost against the engine", float(r["lost %"]), 5, False)


if __name__ == "__main__":
    main()
