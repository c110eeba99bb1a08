"""`python -m tests.sim --seed N | --seeds M [--nodes 3|5]`: what `make sim` calls."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.options import Options
from tests.sim.simulation import Failure, Outcome, simulate
from tests.sim.trace import SOMETIMES

LONG_RUN = 300
"""From so many seeds on, each counter must have counted."""


def main(argv: list[str] | None = None) -> int:
    """Run one seed or many; 1 if one fails, 2 if a long run never saw something."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, and print its options")
    parser.add_argument("--seeds", type=int, default=20, help="run so many (default: 20)")
    parser.add_argument("--first", type=int, default=0, help="begin with this seed (default: 0)")
    parser.add_argument("--nodes", type=int, choices=(3, 5), help="instead of what the seed says")
    parser.add_argument("--tail", type=int, default=60, help="records to print of a failure")
    arguments = parser.parse_args(argv)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
        print(Options.draw(arguments.seed, arguments.nodes).describe())
    else:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
    begun = time.perf_counter()
    outcomes: list[Outcome] = []
    for seed in seeds:
        try:
            outcomes.append(simulate(Options.draw(seed, arguments.nodes), tail=arguments.tail))
        except Failure as failure:
            print(failure)
            return 1
    return _report(outcomes, time.perf_counter() - begun)


def _report(outcomes: list[Outcome], elapsed_s: float) -> int:
    if len(outcomes) == 1:
        print(f"trace {outcomes[0].digest}")
    totals = {name: sum(outcome.counts[name] for outcome in outcomes) for name in SOMETIMES}
    for name, total in totals.items():
        print(f"{total:10}  {name}")
    simulated_s = sum(outcome.simulated_s for outcome in outcomes)
    events = sum(outcome.events for outcome in outcomes)
    print(
        f"{len(outcomes)} seeds, {simulated_s:.0f} simulated seconds, {events} events in "
        f"{elapsed_s:.1f} s: {len(outcomes) / elapsed_s:.2f} seeds/s"
    )
    never = [name for name, total in totals.items() if not total]
    if never and len(outcomes) >= LONG_RUN:
        print(f"never happened: {', '.join(never)}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
