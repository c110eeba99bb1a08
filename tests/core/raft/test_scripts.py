"""Golden scripts of consensus: commands, and all that they cause. `--rewrite` writes them anew.

cluster 3 [learner 4,5]   make a cluster; everybody is a voter but the learners
logs 1 1122 [3]           node 1 starts in term 3, with entries of these terms (-: none)
elect 1                   node 1 times out until it leads; told in one line
timeout 1                 node 1's election timer is due
propose 1 x y             one batch of two entries
read 1 7                  a linearizable read with token 7
transfer 1 2|best         hand leadership over
interest 2 on|off         clients wait on node 2
deliver [1->2]            what is on the wire now (on that link), once
settle                    everything, until the wire is quiet
drop [1->2]               lose what is on the wire
repeat 1->2               put what is on that link on the wire once more
cut 1->2 · partition 1,2 3 · heal
tick 0.5                  let time pass, nothing is delivered; timers that are due go off
disk 1 hold|release       writes wait for `durable`
durable 1 [2]             node 1's writes (up to number 2) are on disk
crash 1 · restart 1
compact 1 [5]             node 1 makes a prefix of what it has applied; its log starts behind 5
install 1->2              node 1's prefix arrives at node 2
below 1 · reach 1         whom node 1 owes its prefix; the lowest match within reach
lease 1 · log 1 · show    what is known
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from folkmoot.core.raft import HardState
from folkmoot.core.types import NodeId
from tests.core.raft.network import Envelope, Network, voters
from tests.core.raft.single import batches

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts" / "raft").glob("*.txt"))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


class Player:
    """Runs the commands of one script, and collects what they cause."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.logs: dict[int, tuple[str, int]] = {}
        self.made: Network | None = None
        self.shape: tuple[int, list[int]] = (3, [])
        self.commands: dict[str, Callable[..., None]] = {
            name.removeprefix("do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("do_")
        }

    @property
    def network(self) -> Network:
        if self.made is None:
            count, learners = self.shape
            self.made = Network(
                configuration=voters(*range(1, count + 1), learners=learners),
                logs={
                    n: batches(*[(int(t), 1) for t in terms]) for n, (terms, _) in self.logs.items()
                },
                hard_states={n: HardState(term) for n, (_, term) in self.logs.items()},
            )
            self.made.note = self.lines.append
            # Past the silence after a restart, which only one script is about.
            self.made.now = 1.0
        return self.made

    def play(self, line: str) -> list[str]:
        self.lines.clear()
        name, *arguments = line.split()
        self.commands[name](*arguments)
        return list(self.lines)

    # -- making --------------------------------------------------------------------------------

    def do_cluster(self, count: str, *options: str) -> None:
        self.shape = (int(count), numbers(options[1]) if options else [])

    def do_logs(self, node: str, terms: str, term: str = "") -> None:
        self.logs[int(node)] = (terms.strip("-"), int(term or terms[-1]))

    # -- inputs --------------------------------------------------------------------------------

    def do_elect(self, node: str) -> None:
        self.network.elect(int(node))
        self.lines[:] = [f"{node} leads term {self.network[int(node)].term}"]

    def do_timeout(self, node: str) -> None:
        self.network.time_out(int(node))

    def do_propose(self, node: str, *texts: str) -> None:
        self.network.propose(int(node), *texts)

    def do_read(self, node: str, token: str) -> None:
        self.network.read(int(node), int(token))

    def do_transfer(self, node: str, target: str) -> None:
        chosen = None if target == "best" else NodeId(int(target))
        self.network[int(node)].transfer_leadership(chosen, self.network.now)
        self.network.turn(int(node))

    def do_interest(self, node: str, state: str) -> None:
        self.network[int(node)].set_commit_interest(state == "on")

    # -- the wire ------------------------------------------------------------------------------

    def _link(self, link: str) -> tuple[int | None, int | None]:
        if not link:
            return None, None
        sender, receiver = link.split("->")
        return int(sender), int(receiver)

    def do_deliver(self, link: str = "") -> None:
        self.network.deliver(*self._link(link))

    def do_settle(self) -> None:
        self.network.settle()

    def do_drop(self, link: str = "") -> None:
        self.lines.append(f"{len(self.network.take(*self._link(link)))} lost")

    def do_repeat(self, link: str) -> None:
        sender, receiver = self._link(link)
        wire = self.network.wire
        wire += [
            Envelope(e.deliver_at, e.sender, e.receiver, e.message)
            for e in list(wire)
            if (e.sender, e.receiver) == (sender, receiver)
        ]

    def do_cut(self, link: str) -> None:
        sender, receiver = link.split("->")
        self.network.cut.add((int(sender), int(receiver)))

    def do_partition(self, *groups: str) -> None:
        self.network.partition(*map(numbers, groups))

    def do_heal(self) -> None:
        self.network.heal()

    # -- time, disks, crashes ------------------------------------------------------------------

    def do_tick(self, seconds: str) -> None:
        self.network.now += float(seconds)
        for node_id, node in self.network.nodes.items():
            if node.is_up:
                self.network.tick(node_id)

    def do_disk(self, node: str, state: str) -> None:
        if state == "hold":
            self.network.hold_disk(int(node))
        else:
            self.network.release_disk(int(node))

    def do_durable(self, node: str, number: str = "0") -> None:
        self.network.durable(int(node), int(number) or None)

    def do_crash(self, node: str) -> None:
        self.network.crash(int(node))

    def do_restart(self, node: str) -> None:
        self.network.restart(int(node))

    def do_compact(self, node: str, start: str = "") -> None:
        self.network.compact(int(node), int(start) if start else None)

    def do_install(self, link: str) -> None:
        sender, receiver = map(int, link.split("->"))
        if not self.network.install(receiver, self.network.nodes[sender].disk.prefix):
            self.lines.append("of no use")

    # -- what is known -------------------------------------------------------------------------

    def do_lease(self, node: str) -> None:
        valid = self.network[int(node)].lease_valid(self.network.now)
        self.lines.append("holds" if valid else "none")

    def do_below(self, node: str) -> None:
        self.lines.append(" ".join(map(str, self.network[int(node)].followers_below_log())) or "-")

    def do_reach(self, node: str) -> None:
        self.lines.append(str(self.network[int(node)].reachable_match(self.network.now)))

    def do_log(self, node: str) -> None:
        log = self.network[int(node)].log
        if log.start_index:
            self.lines.append(f"starts behind {log.start_index}/t{log.start_term}")
        terms = " ".join(
            f"{i}/t{log.term_at(i)}" for i in range(log.first_index, log.last_index + 1)
        )
        self.lines.append(terms or "empty")

    def do_show(self) -> None:
        for node_id, node in self.network.nodes.items():
            raft = node.raft
            self.lines.append(
                f"{node_id}: {raft.role} of term {raft.term}, follows {raft.leader}, "
                f"commit {raft.commit_index}, durable {raft.durable_index}, last {raft.last_index}"
                + ("" if node.is_up else ", down")
            )
            followers = raft.status().get("progress", {}) if node.is_up else {}
            for peer, progress in followers.items():
                self.lines.append(
                    f"   {peer}: {progress['state']}, match {progress['match_index']}, "
                    f"next {progress['next_index']}"
                )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path, rewrite: bool) -> None:
    text = path.read_text()
    player = Player()
    played: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            continue
        played.append(line)
        if line and not line.startswith("#"):
            played += [f"    {effect}".rstrip() for effect in player.play(line)]
    if player.made is not None:
        player.made.check_logs()
    result = "\n".join(played) + "\n"
    if rewrite:
        path.write_text(result)
    assert result == text


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 10
