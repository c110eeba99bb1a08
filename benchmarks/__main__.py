"""`python -m benchmarks`: Folkmoot beside etcd and ZooKeeper, in one run, as ratios.

Three server processes of each system with fsync on, their clients in processes of their own, all on
this machine. The systems take turns within each workload (peer, Folkmoot, peer, ...), because
absolute figures move with the machine from minute to minute while ratios of things run next to one
another hold. Prints one table of medians and ratios and writes everything to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import operations, report
from benchmarks.systems import SYSTEMS, Folkmoot, FolkmootSingle, System, client_run

WORKLOADS = ["W1", "W2", "W3", "R1", "R1l", "R2", "R2l", "L1", "L2", "E1a", "E1b"]
LEASE_TWIN = {"R1l": "R1", "R2l": "R2"}
"""A lease read of Folkmoot is compared with the peer's own default read."""


def measure(
    systems: list[System], workloads: list[str], seconds: float, repeats: int
) -> list[dict[str, Any]]:
    """Every workload on every system, in turns."""
    rows = []
    total = repeats * sum(_has(system, workload) for workload in workloads for system in systems)
    for workload in workloads:
        for repeat in range(repeats):
            for system in systems:
                if not _has(system, workload):
                    continue
                row = one(system, workload, seconds, repeat)
                rows.append(row)
                shown = (
                    row.get("error") or f"{row['rate']:>10,.0f}/s  p50 {row.get('p50_ms', '-')} ms"
                )
                print(
                    f"[{len(rows)}/{total}] {workload:4} {system.name:16} {shown}", file=sys.stderr
                )
    return rows


def _has(system: System, workload: str) -> bool:
    """Whether the system has what the workload asks for."""
    if isinstance(system, FolkmootSingle):
        return workload not in {"W3", "E1a", "E1b"}  # those need two clients
    return workload not in LEASE_TWIN or isinstance(system, Folkmoot)


def one(system: System, workload: str, seconds: float, repeat: int) -> dict[str, Any]:
    row: dict[str, Any] = {"system": system.name, "workload": workload, "repeat": repeat}
    before = system.processes.cpu_s()
    try:
        result = client_run(
            system.name, system.address(), workload, seconds, 2 if workload == "W3" else 1
        )
    except Exception as error:  # a system that cannot do it is a finding, not the end of the run
        return {**row, "error": str(error)}
    result["server_cpu_s"] = round(system.processes.cpu_s() - before, 3)
    if result["count"]:
        # The CPU of the warm-up is in it too, so the operations of the warm-up are counted in.
        whole = result["count"] * (seconds + 0.5) / seconds
        result["cpu_us_per_op"] = round((result["server_cpu_s"] + result["cpu_s"]) / whole * 1e6, 1)
    return {**row, **result}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", nargs="*", default=WORKLOADS, choices=WORKLOADS, metavar="W", help="workloads"
    )
    parser.add_argument(
        "--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS), metavar="NAME"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of each run, after a warm-up of 0.5 s"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--no-operations",
        action="store_true",
        help="leave out start-up, failover, idle CPU, memory",
    )
    parser.add_argument(
        "--data",
        help="where the servers keep their data (a real disk; default: a temporary directory)",
    )
    arguments = parser.parse_args()
    for name in arguments.systems:
        if why := SYSTEMS[name].missing():
            print(f"left out: {name}: {why}", file=sys.stderr)
    names = [name for name in arguments.systems if not SYSTEMS[name].missing()]
    base = Path(tempfile.mkdtemp(prefix="folkmoot-bench-", dir=arguments.data))
    systems = [
        SYSTEMS[name](base / name)
        for name in sorted(names, key=lambda name: name.startswith("folkmoot"))
    ]
    started = time.monotonic()
    try:
        rows: list[dict[str, Any]] = []
        facts: list[dict[str, Any]] = []
        if not arguments.no_operations:
            served = [system for system in systems if not isinstance(system, FolkmootSingle)]
            facts = operations.measure(served, arguments.repeats)
        for system in systems:
            system.start()
        for system in systems:
            client_run(system.name, system.address(), "preload", 0.0)
        rows = measure(systems, arguments.only, arguments.seconds, arguments.repeats)
    finally:
        for system in systems:
            system.stop()
        shutil.rmtree(base, ignore_errors=True)
    settings = {
        "seconds": arguments.seconds,
        "repeats": arguments.repeats,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": {system.name: system.version for system in systems},
        "settings": {system.name: system.settings for system in systems},
        "took_s": round(time.monotonic() - started),
    }
    print(report.table(rows, facts, settings))
    print(f"kept in {report.keep(rows, facts, settings)}")
    return 1 if any("error" in row for row in rows if row["system"] == "folkmoot") else 0


if __name__ == "__main__":
    sys.exit(main())
