"""`python -m benchmarks.compaction`: what a million live keys cost: disk, pauses, restart, joining.

Three server processes with fsync on, one client process with 64 writers, all on this machine.

    fill      KEYS keys with values of 100 bytes
    control   overwriting a fifth of them at random, with compaction switched off
    churn     the same with compaction, for a long while: throughput while it works and while it
              rests, disk against live data, how long turns of the loop take
    restart   a follower is killed and started again: until it serves; memory before and after
    join      a follower starts with an empty disk while the writing goes on: until it has caught up
    stop      what a snapshot of the whole state, made at once, would have cost the loop

Figures of one run, settings printed; everything is kept in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs

from benchmarks.compaction_servers import SAMPLE_S, Servers, Watch
from benchmarks.report import RESULTS
from benchmarks.systems import NODES, wait_for
from folkmoot.core.config import StorageConfig
from folkmoot.core.routing import TURN_BOUNDS_MS

VALUE_BYTES = 100
WRITERS = 64
KEY = "key-{:08d}"
LIVE_BYTES_PER_KEY = VALUE_BYTES + len(KEY.format(0))


def writer(
    address: str, first: int, keys: int, seconds: float, ordered: bool
) -> subprocess.Popen[str]:
    """Start the client process; it prints one line of JSON at its end."""
    command = [
        sys.executable, "-m", "benchmarks.compaction", "--writer", address,
        "--first", str(first), "--keys", str(keys), "--seconds", str(seconds),
        *(["--ordered"] if ordered else []),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def report_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the writing client ended with status {child.returncode}")
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


async def write(
    address: str, first: int, keys: int, seconds: float, ordered: bool
) -> dict[str, Any]:
    """Set keys, in order once or at random for some time; count per second."""
    import folkmoot

    rng, value = random.Random(1), os.urandom(VALUE_BYTES)
    counts: dict[int, int] = {}
    latencies: list[float] = []
    clock = time.monotonic
    async with folkmoot.open(address) as cluster:
        await cluster.wait_ready(30)
        items = cluster.map("million", codec="bytes")
        numbers = iter(range(first, first + keys))
        end = clock() + seconds if seconds else float("inf")

        async def work() -> None:
            while (begun := clock()) < end:
                number = next(numbers, None) if ordered else first + rng.randrange(keys)
                if number is None:
                    return
                await items.set(KEY.format(number), value)
                done = clock()
                counts[int(done / SAMPLE_S)] = counts.get(int(done / SAMPLE_S), 0) + 1
                latencies.append(done - begun)

        begun = clock()
        await asyncio.gather(*(work() for _ in range(WRITERS)))
        took_s = clock() - begun
    latencies.sort()
    return {
        "rate": round(len(latencies) / took_s, 1),
        "p50_ms": round(latencies[len(latencies) // 2] * 1e3, 3),
        "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1e3, 3),
        "p999_ms": round(latencies[int(len(latencies) * 0.999)] * 1e3, 3),
        "max_ms": round(latencies[-1] * 1e3, 3),
        "count": len(latencies),
        "per_slice": {str(at): count for at, count in sorted(counts.items())},
    }


def turn_ms(before: list[int], after: list[int], share: float) -> float:
    """How long that share of the turns between two looks took at most."""
    counts = [b - a for a, b in zip(before, after, strict=True)]
    left = share * sum(counts)
    for count, bound in zip(counts, (*TURN_BOUNDS_MS, float("inf")), strict=True):
        left -= count
        if left <= 0:
            return bound
    return float("inf")


def churn_figures(
    samples: list[dict[str, Any]], report: dict[str, Any], live_bytes: int
) -> dict[str, Any]:
    """Throughput with and without a compaction under way anywhere, disk, turns."""
    busy: list[int] = []
    rest: list[int] = []
    for sample in samples[2:-2]:
        count = report["per_slice"].get(str(int(sample["at"] / SAMPLE_S)), 0)
        working = any(server["compacting"] for server in sample["servers"])
        (busy if working else rest).append(count)
    first, last = samples[0]["servers"], samples[-1]["servers"]
    disk = [max(server["disk_bytes"] for server in sample["servers"]) for sample in samples]
    per_s = 1 / SAMPLE_S
    return {
        "rate": report["rate"],
        "p50_ms": report["p50_ms"],
        "p99_ms": report["p99_ms"],
        "p999_ms": report["p999_ms"],
        "max_ms": report["max_ms"],
        "rate_while_compacting": round(statistics.mean(busy) * per_s) if busy else None,
        "rate_at_rest": round(statistics.mean(rest) * per_s) if rest else None,
        "part_of_time_compacting": round(len(busy) / max(1, len(busy) + len(rest)), 2),
        "compactions": [
            b["compactions"] - a["compactions"] for a, b in zip(first, last, strict=True)
        ],
        "disk_x_live_max": round(max(disk) / live_bytes, 2),
        "disk_mib_max": round(max(disk) / 2**20),
        "prefix_mib_max": largest(samples, "prefix_bytes"),
        "log_mib_max": largest(samples, "log_bytes"),
        "turn_ms_p99": max(
            turn_ms(a["turns"], b["turns"], 0.99) for a, b in zip(first, last, strict=True)
        ),
        "turn_ms_p999": max(
            turn_ms(a["turns"], b["turns"], 0.999) for a, b in zip(first, last, strict=True)
        ),
        "longest_turn_ms": max(server["longest_turn_ms"] for server in last),
    }


def largest(samples: list[dict[str, Any]], key: str) -> int:
    """The largest value that any server had, in MiB."""
    return round(max(server[key] for sample in samples for server in sample["servers"]) / 2**20)


def caught_up(servers: Servers, number: int, index: int) -> bool | None:
    """True once a server has applied that far and answers."""
    return True if servers.status(number)["applied_index"] >= index else None


def level(servers: Servers) -> bool | None:
    """True once all servers have applied the same, but for these very questions, and rest."""
    found = [servers.status(number) for number in range(NODES)]
    indexes = [status["applied_index"] for status in found]
    idle = not any(status["storage"]["compacting"] for status in found)
    return True if idle and max(indexes) - min(indexes) < 100 and found[0]["leader"] else None


def a_follower(servers: Servers) -> int:
    leader = servers.leader()
    return next(number for number in range(NODES) if number != leader)


def measure_restart(servers: Servers) -> dict[str, Any]:
    """Kill a follower and start it again, with everything at rest."""
    number = a_follower(servers)
    rss_before = servers.processes.rss_mib()[number]
    target = servers.status(servers.leader())["commit_index"]
    servers.processes.kill(number)
    begun = time.monotonic()
    servers.launch(number)
    wait_for(lambda: caught_up(servers, number, target), "a restarted server", 300)
    serving_s = time.monotonic() - begun
    time.sleep(2)
    rss_after = servers.processes.rss_mib()[number]
    return {
        "serving_s": round(serving_s, 2),
        "rss_before_mib": rss_before,
        "rss_after_mib": rss_after,
        "rss_ratio": round(rss_after / rss_before, 2),
    }


def measure_join(servers: Servers, address: str, keys: int) -> dict[str, Any]:
    """Give a follower an empty disk, and have it join during the traffic.

    Under its old id only a benchmark may do that, and only as a new term begins: the leader of a
    term knows what a member has stored in it.
    """
    number = a_follower(servers)
    alone = report_of(writer(address, 0, keys, 10, False))
    servers.processes.kill(number)
    shutil.rmtree(servers.directory / "data" / str(number))
    servers.transfer()
    child = writer(address, 0, keys, 75, False)
    time.sleep(5)
    target = servers.status(servers.leader())["commit_index"]
    begun = time.monotonic()
    servers.launch(number)
    phases: list[tuple[float, Any]] = []

    def joined() -> bool | None:
        status = servers.status(number)
        phases.append((round(time.monotonic() - begun, 1), status["receiving"]))
        level = servers.status(servers.leader())["commit_index"] - status["applied_index"]
        return True if status["applied_index"] >= target and level < 50_000 else None

    wait_for(joined, "a joining server", 300)
    joined_s = time.monotonic() - begun
    during = report_of(child)
    slices = {int(at): count for at, count in during["per_slice"].items()}
    inside = [
        count
        for at, count in slices.items()
        if begun <= at * SAMPLE_S and (at + 1) * SAMPLE_S <= begun + joined_s
    ]
    return {
        "joined_s": round(joined_s, 1),
        "rate_before": alone["rate"],
        "rate_during": round(statistics.mean(inside) / SAMPLE_S) if inside else None,
        "phases": phases[:: max(1, len(phases) // 20)],
    }


def measure_whole_snapshot(keys: int) -> dict[str, Any]:
    """What a snapshot of everything, packed at once, costs: the loop would stand still for it."""
    import msgpack

    from folkmoot.primitives.map_machine import MapMachine

    machine = MapMachine({})
    value = os.urandom(VALUE_BYTES)

    class Entry:
        index, time, session = 0, 0, 1

    entry: Any = Entry()
    for number in range(keys):
        entry.index = number + 1
        machine.restore_item(entry, "set", [KEY.format(number), value], (0,))
    begun = time.perf_counter()
    data = msgpack.packb(machine.snapshot())
    return {
        "keys": keys,
        "stood_still_s": round(time.perf_counter() - begun, 2),
        "mib": len(data) >> 20,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compaction", description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the churn")
    parser.add_argument("--control-seconds", type=float, default=30.0)
    parser.add_argument("--data", help="where the servers keep their data (a real disk)")
    parser.add_argument("--writer", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--ordered", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.writer:
        found = asyncio.run(
            write(
                arguments.writer,
                arguments.first,
                arguments.keys,
                arguments.seconds,
                arguments.ordered,
            )
        )
        print(json.dumps(found))
        return 0
    return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    keys, hot = arguments.keys, arguments.keys // 5
    live_bytes = keys * LIVE_BYTES_PER_KEY
    base = Path(tempfile.mkdtemp(prefix="folkmoot-bench-", dir=arguments.data))
    servers = Servers(base)
    figures: dict[str, Any] = {}

    def say(name: str, found: dict[str, Any]) -> None:
        figures[name] = found
        shown = {key: value for key, value in found.items() if key not in ("per_slice", "phases")}
        print(f"{name:8} {json.dumps(shown)}", flush=True)

    try:
        say("stop", measure_whole_snapshot(keys))
        servers.begin()
        address = servers.address()
        say("fill", report_of(writer(address, 0, keys, 0, True)))
        servers.processes.stop()
        servers.begin(storage_compaction_log_bytes=1 << 40)
        wait_for(lambda: servers.leader() + 1, "a leader", 120)
        say("control", report_of(writer(address, 0, hot, arguments.control_seconds, False)))
        servers.processes.stop()
        servers.begin()
        wait_for(lambda: level(servers), "servers that have caught up", 120)
        watch = Watch(servers, list(range(NODES)))
        watch.start()
        report = report_of(writer(address, 0, hot, arguments.seconds, False))
        samples = watch.stop()
        found = churn_figures(samples, report, live_bytes)
        found["x_control"] = round(found["rate"] / figures["control"]["rate"], 2)
        say("churn", found)
        say("restart", measure_restart(servers))
        say("join", measure_join(servers, address, hot))
    except BaseException:
        for log in sorted((base / "logs").glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
        raise
    finally:
        servers.processes.stop()
        shutil.rmtree(base, ignore_errors=True)
    return conclude(figures, settings_of(arguments, servers))


def settings_of(arguments: argparse.Namespace, servers: Servers) -> dict[str, Any]:
    return {
        "keys": arguments.keys,
        "value_bytes": VALUE_BYTES,
        "writers": WRITERS,
        "churn_s": arguments.seconds,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "folkmoot": servers.version,
        "servers": servers.settings,
        "storage": attrs.asdict(StorageConfig()),
    }


def conclude(figures: dict[str, Any], settings: dict[str, Any]) -> int:
    """Print the table, keep everything, and say by the status whether all was reached."""
    churn, restart, join = figures["churn"], figures["restart"], figures["join"]
    compacting = churn["rate_while_compacting"] / churn["rate_at_rest"]
    joining = join["rate_during"] / join["rate_before"]
    rows = [
        ("disk, preallocated files too / live data", churn["disk_x_live_max"], "<", 2.5),
        ("p99.9 of the loop's turns, ms", churn["turn_ms_p999"], "<", 20.0),
        ("writes while compacting / at rest", round(compacting, 2), ">", 0.8),
        ("writes with compaction / without", churn["x_control"], ">", 0.8),
        ("restart until serving, s", restart["serving_s"], "<", 10.0),
        ("memory after the restart / before", restart["rss_ratio"], "<", 1.3),
        ("a member with an empty disk joins, s", join["joined_s"], "<", 60.0),
        ("writes while it joins / before", round(joining, 2), ">", 0.7),
    ]
    print(f"\n| {settings['keys']:,} live keys | measured | asked |\n|---|---|---|")
    for title, value, sign, bound in rows:
        print(f"| {title} | {value} | {sign} {bound} |")
    stop = figures["stop"]
    print(
        f"| a snapshot of everything at once, for comparison: the loop stands still, s "
        f"| {stop['stood_still_s']} | |\n"
    )
    path = RESULTS / f"{time.strftime('%Y-%m-%d-%H%M%S', time.gmtime())}-compaction.json"
    for found in figures.values():
        found.pop("per_slice", None)
    path.write_text(json.dumps({"settings": settings, "figures": figures}, indent=1) + "\n")
    print(f"settings {json.dumps(settings)}\nkept in benchmarks/results/{path.name}")
    missed = [title for title, value, sign, bound in rows if (value < bound) != (sign == "<")]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
