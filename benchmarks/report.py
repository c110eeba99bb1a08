"""The table of a benchmark run, and the file that keeps all of it."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FACTS = {
    "first_write_s": "three empty nodes to first write, s",
    "failover_s": "leader kill -9 to next write, s",
    "idle_percent": "idle CPU per node, % of a core",
    "rss_idle_mib": "resident memory idle, MiB",
    "rss_100k_keys_mib": "resident memory after 100,000 keys, MiB",
}


def medians(rows: list[dict[str, Any]], system: str, workload: str, key: str) -> float | None:
    values = [
        row[key]
        for row in rows
        if row["system"] == system and row["workload"] == workload and key in row
    ]
    return statistics.median(values) if values else None


def _cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def table(rows: list[dict[str, Any]], facts: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Medians of every workload, and the ratio of Folkmoot's to each peer's."""
    systems = list(settings["versions"])
    peers = [system for system in systems if not system.startswith("folkmoot")]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    titles = ["workload", *(f"{name} /s | p50 / p99 ms" for name in systems), "us CPU/op"]
    titles += [f"x {peer}" for peer in peers]
    lines = [
        f"medians of {settings['repeats']} runs of {settings['seconds']} s, "
        f"{settings['cores']} cores, Python {settings['python']}; {versions}",
        "",
        "| " + " | ".join(titles) + " |",
        "|---" * (2 * len(systems) + len(peers) + 2) + "|",
    ]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        cells = []
        for system in systems:
            rate = medians(rows, system, workload, "rate")
            p50, p99 = (medians(rows, system, workload, key) for key in ("p50_ms", "p99_ms"))
            cells += [_cell(rate), f"{_cell(p50, 2)} / {_cell(p99, 2)}"]
        own = medians(rows, "folkmoot", workload, "rate")
        cells.append(_cell(medians(rows, "folkmoot", workload, "cpu_us_per_op"), 1))
        for peer in peers:
            key = "p50_ms" if workload == "E1a" else "rate"
            mine = medians(rows, "folkmoot", workload, key) if key != "rate" else own
            theirs = medians(rows, peer, workload.removesuffix("l"), key)
            cells.append("-" if not mine or not theirs else f"{mine / theirs:.2f}")
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    lines += _facts(facts, systems, peers)
    return "\n".join(lines)


def _facts(facts: list[dict[str, Any]], systems: list[str], peers: list[str]) -> list[str]:
    if not facts:
        return []
    lines = [
        "",
        "| | " + " | ".join(systems) + " | " + " | ".join(f"x {peer}" for peer in peers) + " |",
    ]
    lines.append("|---" * (1 + len(systems) + len(peers)) + "|")
    for key, title in FACTS.items():
        found = {}
        for system in systems:
            values = [fact[key] for fact in facts if fact["system"] == system and key in fact]
            found[system] = statistics.median(values) if values else None
        cells = [_cell(found[system], 2) for system in systems]
        own = found.get("folkmoot")
        cells += [
            "-" if not own or not found[peer] else f"{own / found[peer]:.2f}" for peer in peers
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def keep(rows: list[dict[str, Any]], facts: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Write everything to a file of its own; its name, relative to the project."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%d-%H%M%S', time.gmtime())}.json"
    path.write_text(
        json.dumps({"settings": settings, "facts": facts, "rows": rows}, indent=1) + "\n"
    )
    return f"benchmarks/results/{path.name}"
