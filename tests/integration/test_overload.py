# SPDX-License-Identifier: Apache-2.0
"""Two hundred clients on pools for a handful: nobody is lost, nothing stays behind (tests/load/overload.py)."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "load"))
import overload  # noqa: E402

CONNECTIONS, SECONDS = 200, 3
# Four sequences share 32 blocks of 16 tokens, and eight more may wait.
FLAGS = ("--max-num-seqs", "4", "--max-queued-requests", "8", "--kv-cache-memory", "2304K")
GROWTH_KIB = 4096  # from the first round to the second


def test_everyone_is_answered_or_refused_and_nothing_stays(start):
    daemon = start(*FLAGS)
    assert daemon.metric('openmoed_kv_blocks{state="total"}') == 32
    before = overload.descriptors(daemon.process.pid)
    rounds = [overload.Round(daemon, CONNECTIONS, SECONDS, longest=60, seed=i) for i in (1, 2)]
    for one in rounds:
        print(dict(one.tally), f"peak {one.peak_kib} KiB, then {one.after_kib} KiB")
        assert not one.lost, one.lost
        assert one.tally["200"] and one.tally["429"] and one.tally["400"] and one.tally["vanished"]
        assert one.descriptors >= CONNECTIONS
        assert not one.left, one.left
        assert one.after_descriptors <= before + 1  # the connection of the last look at /metrics
    with open(f"/proc/{daemon.process.pid}/maps", encoding="utf-8") as maps:
        sanitized = any(name in line for line in maps for name in ("libasan", "libtsan"))
    if not sanitized:  # sanitizers keep freed memory back
        assert rounds[1].after_kib <= rounds[0].after_kib + GROWTH_KIB
    assert daemon.get("/health")[0] == 200
    assert daemon.stop() == 0, daemon.log
