"""Scripted schedules, for what random runs meet too rarely: each takes the place of the nemesis.

A script is called once, when the run begins; it schedules what shall happen. `catch` waits for a
moment that depends on the run itself.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.client import SimClient
from tests.sim.member import Member
from tests.sim.network import Way
from tests.sim.simulation import Simulation

STEP_S = 0.002


def catch(world: Simulation, moment: Callable[[], bool], act: Callable[[], None]) -> None:
    """Call `act` as soon as `moment()` holds; look again and again until then."""

    def look() -> None:
        if moment():
            act()
        else:
            world.scheduler.after(STEP_S, look)

    look()


def parts(world: Simulation) -> tuple[Member, list[Member]]:
    """The leader, and the others."""
    leader = world.leader()
    assert leader is not None, "nobody leads"
    return leader, [member for member in world.members.values() if member is not leader]


def both(one: Member, other: Member) -> set[Way]:
    """Both ways between two."""
    return {(one.name, other.name), (other.name, one.name)}


def candidate_beside_a_lease(world: Simulation) -> None:
    """§4.2.3: the leader and one follower do not reach each other; the other follower has both.

    The lonely one campaigns. Were the other to vote for it, the leader's lease would still hold.
    """

    def cut() -> None:
        leader, (lonely, _) = parts(world)
        world.network.block(both(leader, lonely))

    world.scheduler.at(2.0, cut)


def restart_beside_a_lease(world: Simulation) -> None:
    """C7: as above, and the follower that has both restarts when the lonely one is to campaign.

    At that moment the leader is cut off, so that nobody tells the follower of it again.
    """

    def cut() -> None:
        leader, (lonely, friend) = parts(world)
        world.network.block(both(leader, lonely))

        def about_to_campaign() -> bool:
            left_s = lonely.raft.deadline() - lonely.local_now()
            return world.scheduler.now > 3.0 and 0.05 < left_s < 0.1

        def restart() -> None:
            world.network.block(both(leader, friend))
            friend.crash(power_cut=False)
            friend.start()

        catch(world, about_to_campaign, restart)

    world.scheduler.at(2.0, cut)


def answers_much_later_than_questions(world: Simulation) -> None:
    """C4: the followers get a heartbeat and nothing after it; their answers take 0.35 s."""

    def hold_answers() -> None:
        leader, followers = parts(world)
        number = world.network.block((one.name, leader.name) for one in followers)

        def cut_off() -> None:
            world.network.block((leader.name, one.name) for one in followers)

        def isolate() -> None:
            world.network.block(way for one in followers for way in both(leader, one))

        world.scheduler.after(0.11, cut_off)
        world.scheduler.after(0.40, world.network.unblock, number)
        world.scheduler.after(0.42, isolate)

    world.scheduler.at(2.0, hold_answers)


def reads_beside_a_silent_majority(world: Simulation) -> None:
    """More rounds of reads than consensus takes at once: the leader hears nobody for a while."""

    def cut() -> None:
        leader, followers = parts(world)
        number = world.network.block(way for one in followers for way in both(leader, one))
        world.scheduler.after(0.45, world.network.unblock, number)

    world.scheduler.at(1.5, cut)


def slow_leader_cut_off(world: Simulation) -> None:
    """§6.4: a leader whose clock goes at half speed learns late that it leads nobody any more.

    Clients are still with it, while others write through the new leader. What it answers to default
    reads then is stale, unless it asks a majority first.
    """

    def cut() -> None:
        leader, followers = parts(world)
        leader.clock.set_rate(0.5)
        world.network.block(way for one in followers for way in both(leader, one))

    world.scheduler.at(2.0, cut)


def move_in_the_midst_of_commands(world: Simulation) -> None:
    """A server with a slow disk answers nobody, and then its last commands stall on their way.

    A client moves to another, where the first of its commands are applied already. The last ones
    are applied there before the client's own repetition of the first arrives.
    """

    def slow() -> None:
        leader, (server, other) = parts(world)
        server.disk.slow_s = 0.7
        there = [
            client
            for client in world.clients.values()
            if client.connection is not None and client.connection.member is server
        ]

        def stall() -> None:
            number = world.network.block({(server.name, leader.name)})

            def moved() -> list[SimClient]:
                return [
                    client
                    for client in there
                    if (connection := client.connection) is not None
                    and connection.member in (leader, other)
                    and connection.server is not None
                    and connection.server.session_id
                ]

            def go_on() -> None:
                held = {(client.name, name) for client in moved() for name in ("1", "2", "3")}
                held_number = world.network.block(held)
                world.network.unblock(number)
                world.scheduler.after(0.1, world.network.unblock, held_number)

            catch(world, lambda: bool(moved()), go_on)

        world.scheduler.after(0.2, stall)

    world.scheduler.at(2.0, slow)


def leader_whose_first_entry_takes_long(world: Simulation) -> None:
    """C1: a new leader does not know yet how much is committed, and its first entry takes long.

    The old leader had told clients of its last commits, and nobody else.
    """

    def crash() -> None:
        old, others = parts(world)
        world.network.block(way for one in others for way in both(old, one))

        def led() -> bool:
            leader = world.leader()
            return leader is not None and leader is not old

        def slow() -> None:
            for member in others:
                member.disk.slow_s = 0.7

        catch(world, led, slow)

    world.scheduler.at(2.0, crash)


def disks_that_run_low(world: Simulation) -> None:
    """Disks come to have less free than the reserve, and have room again, beside all other faults.

    No disk fills up: what is taken while one is low stays far below what is left.
    """
    rng = world.random("room")

    def change() -> None:
        if world.is_healing:
            return
        for member in world.members.values():
            if rng.random() < 0.5:
                low = rng.random() < 0.6
                member.disk.limit(member.config.storage.reserve_bytes // 2 if low else None)
        world.scheduler.after(rng.uniform(0.2, 2.5), change)

    world.nemesis.start()
    change()


def left_behind_while_it_compacts(world: Simulation) -> None:
    """E3, E9: a follower that is cut off begins to compact; then only a prefix can help it.

    The leader compacts meanwhile until its log does not reach back to the follower's end.
    """

    def cut() -> None:
        leader, (behind, other) = parts(world)
        number = world.network.block(way for one in (leader, other) for way in both(behind, one))

        def is_out_of_reach() -> bool:
            if leader.is_up and not world.is_healing:
                leader.replica.compacting.want(leader.multiplexer.index)
                leader.wake()
            return leader.raft.log.start_index > behind.raft.last_index

        def go_on() -> None:
            behind.replica.compacting.want(behind.multiplexer.index)
            behind.wake()
            world.network.unblock(number)

        catch(world, is_out_of_reach, go_on)

    world.scheduler.at(2.0, cut)
