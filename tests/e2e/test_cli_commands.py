"""Every command against a real cluster of three servers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import attrs
import pytest

from folkmoot.cli import app
from folkmoot.cli.exits import ExitCode
from folkmoot.cli.processes import LocalCluster, local_cluster

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(nodes=3, port=0) as found:
        found.start()
        anyio.run(found.wait_ready, 30.0)
        yield found
        anyio.run(found.stop)


@attrs.frozen
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(cluster: LocalCluster, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process; its output is a pipe's."""

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        code = app.run(["--url", cluster.url, *arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Done(code, captured.out, captured.err)

    return run


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(cluster: LocalCluster) -> Iterator[Start]:
    """Start a command line as a process, which does not outlive the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "folkmoot.cli", "--url", cluster.url, *arguments],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield start


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.05)


def test_a_value_is_set_read_listed_and_deleted(run: Run) -> None:
    assert run("get", "a", "k") == Done(1, "", "folkmoot: 'k' is not in map 'a'\n")
    revision = int(run("set", "a", "k", "hällo").out)
    assert run("get", "a", "k").out == "hällo\n"
    assert json.loads(run("get", "a", "k", "--json").out) == {
        "key": "k",
        "value": "hällo",
        "version": revision,
        "ttl": None,
    }
    refused = run("set", "a", "k", "x", "--if-version", "1")
    assert refused.code == ExitCode.REFUSED
    assert run("set", "a", "k", "new", "--if-version", str(revision)).code == 0
    run("set", "a", "other", "x")
    assert run("keys", "a").out == "k\nother\n"
    assert json.loads(run("keys", "a", "--prefix", "o", "--json").out) == ["other"]
    assert run("del", "a", "k").code == 0
    assert run("del", "a", "k").code == ExitCode.REFUSED


def test_a_text_is_what_a_program_would_have_stored(run: Run, cluster: LocalCluster) -> None:
    async def read() -> tuple[object, object]:
        import folkmoot

        async with folkmoot.open(cluster.url) as found:
            texts, raw = found.map("text", str), found.map("raw", codec="bytes")
            await found.map("data").set("k", {"n": [1, None]})
            return await texts.get("k"), await raw.get("k")

    run("set", "text", "k", "v")
    run("set", "raw", "k", "v", "--raw")
    assert anyio.run(read) == ("v", b"v")
    assert run("get", "raw", "k", "--raw").out == "v", "nothing is added"
    assert run("get", "data", "k").out == '{"n": [1, null]}\n'


def test_bytes_that_are_no_text_need_raw(run: Run) -> None:
    wrong = run("set", "a", "k", os.fsdecode(b"\xff"))
    assert wrong.code == ExitCode.USAGE
    assert "use --raw" in wrong.err
    assert run("set", "bytes", "k", os.fsdecode(b"\xff"), "--raw").code == 0
    assert json.loads(run("get", "bytes", "k", "--raw", "--json").out)["value"] == {
        "base64": "/w=="
    }


def test_a_counter_is_read_added_to_and_set(run: Run) -> None:
    assert [
        run("counter", "c", *arguments).out
        for arguments in ([], ["add"], ["add", "5"], ["add", "-2"], ["set", "40"], ["get"])
    ] == ["0\n", "1\n", "6\n", "4\n", "40\n", "40\n"]
    assert json.loads(run("counter", "c", "--json").out) == {"name": "c", "value": 40}
    assert run("counter", "c", "set").code == ExitCode.USAGE
    assert run("counter", "c", "get", "3").code == ExitCode.USAGE


def test_a_name_of_another_type_is_refused_with_both(run: Run) -> None:
    run("set", "typed", "k", "v")
    refused = run("counter", "typed", "add")
    assert refused.code == ExitCode.REFUSED
    assert "map" in refused.err
    assert "counter" in refused.err


def test_a_watch_tells_what_is_there_and_what_changes(run: Run, start: Start) -> None:
    run("set", "w", "in-1", "a")
    run("set", "w", "out", "b")
    watch = start("watch", "w", "--prefix", "in-", "--initial", "--count", "3", "--json")
    assert watch.stdout is not None
    first = json.loads(watch.stdout.readline())
    assert (first["event"], first["items"]) == ("resync", {"in-1": "a"})
    run("set", "w", "out", "c")
    run("set", "w", "in-2", "d")
    run("del", "w", "in-1")
    rest = [json.loads(line) for line in watch.communicate(timeout=20)[0].splitlines()]
    told = [(event["event"], event["key"]) for event in rest]
    assert told == [("set", "in-2"), ("removed", "in-1")]
    assert watch.returncode == 0


def test_messages_are_received_once_and_in_order(run: Run, start: Start) -> None:
    first = int(run("pub", "t", "one").out)
    sub = start("sub", "t", "--since", "0", "--count", "3")
    assert sub.stdout is not None
    assert sub.stdout.readline() == f"{first}\tone\n"
    run("pub", "t", "two\tand more")
    last = int(run("pub", "t", "three").out)
    lines = sub.communicate(timeout=20)[0].splitlines()
    assert [line.split("\t")[1] for line in lines] == ["two\\tand more", "three"]
    assert run("sub", "t", "--since", str(last - 1), "--count", "1").out == f"{last}\tthree\n"


def test_a_command_runs_under_the_lock_and_its_code_is_ours(run: Run) -> None:
    done = run("lock", "l", "--", "sh", "-c", "echo $FOLKMOOT_LOCK $FOLKMOOT_TOKEN; exit 3")
    assert done.code == 3
    name, token = done.out.split()
    assert name == "l"
    again = run("lock", "l", "--", "sh", "-c", "echo $FOLKMOOT_TOKEN")
    assert int(again.out) > int(token)


def test_a_lock_that_is_held_is_waited_for_in_vain(run: Run, start: Start, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    holder = start("lock", "busy", "--", "sh", "-c", f"touch {ready}; exec sleep 60")
    try:
        until(ready.exists)
        waited = run("lock", "busy", "--timeout", "0.2", "--", "touch", str(tmp_path / "ran"))
        assert waited.code == ExitCode.NOT_GRANTED
        assert not (tmp_path / "ran").exists()
        found = json.loads(run("inspect", "busy", "--json").out)
        assert found["type"] == "lock"
        assert str(holder.pid) in found["description"]["holder"]["client"]
        assert "description.holder.token" in run("inspect", "busy").out
    finally:
        holder.terminate()
    assert holder.wait(timeout=20) == 128 + 15, "SIGTERM was passed on to the command"
    assert run("lock", "busy", "--timeout", "2", "--", "true").code == 0, "it was released"


def test_a_command_that_does_not_exist_takes_no_lock(run: Run) -> None:
    done = run("lock", "l2", "--", "no-such-command")
    assert (done.code, done.err) == (127, "folkmoot: no-such-command was not found\n")
    assert "l2" not in run("ls").out


def test_waiting_is_given_up_on_sigterm(run: Run, start: Start, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    holder = start("lock", "queue", "--", "sh", "-c", f"touch {ready}; exec sleep 60")
    try:
        until(ready.exists)
        waiter = start("lock", "queue", "--", "true")

        def waiting() -> int:
            found = json.loads(run("inspect", "queue", "--json").out)
            return int(found["description"]["waiting"])

        until(lambda: waiting() == 1)
        waiter.terminate()
        assert waiter.wait(timeout=20) == 128 + 15
        assert waiting() == 0, "withdrawn at once, not when its session expires"
    finally:
        holder.terminate()
        holder.wait(timeout=20)


def test_a_leader_runs_its_command_and_the_next_takes_over(
    run: Run, start: Start, tmp_path: Path
) -> None:
    script = f"echo $FOLKMOOT_ELECTION $FOLKMOOT_TOKEN >> {tmp_path}/leaders; exec sleep 60"
    first = start("elect", "e", "--value", "me", "--", "sh", "-c", script)
    leaders = tmp_path / "leaders"
    until(lambda: leaders.exists() and leaders.read_text().count("\n") == 1)
    found = json.loads(run("inspect", "e", "--json").out)
    assert found["description"]["leader"]["value"] == "me"
    second = start("elect", "e", "--", "sh", "-c", script)
    first.terminate()
    assert first.wait(timeout=20) == 128 + 15
    until(lambda: leaders.read_text().count("\n") == 2)
    second.terminate()
    second.wait(timeout=20)
    tokens = [int(line.split()[1]) for line in leaders.read_text().splitlines()]
    assert tokens[0] < tokens[1]


def test_resources_are_listed_by_prefix(run: Run) -> None:
    for name in ("list/a", "list/b", "other"):
        run("set", name, "k", "v")
    lines = [line.split("\t")[:2] for line in run("ls", "list/").out.splitlines()]
    assert lines == [["list/a", "map"], ["list/b", "map"]]
    assert {row["name"] for row in json.loads(run("ls", "--json").out)} >= {"list/a", "other"}
    assert run("inspect", "nothing").code == ExitCode.REFUSED


def test_the_status_has_one_line_for_each_member(run: Run) -> None:
    lines = run("status").out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["1", "2", "3"]
    assert sorted(line.split("\t")[1] for line in lines) == ["follower", "follower", "leader"]
    found = json.loads(run("status", "--json").out)
    assert all(member["lag"] is not None for member in found["members"])
    assert run("status", "--sessions", "--json").code == 0


def test_a_benchmark_prints_rates_and_leaves_nothing_behind(run: Run) -> None:
    rows = json.loads(run("bench", "--seconds", "0.2", "--tasks", "4", "--json").out)
    assert len(rows) == 4
    assert all(row["per_second"] > 0 and row["errors"] == 0 for row in rows)
    assert "folkmoot-bench" not in run("ls").out


def test_a_lost_lock_ends_the_command_with_79_before_another_has_it(
    cluster: LocalCluster, start: Start, tmp_path: Path
) -> None:
    """Its client cannot reach the cluster any more: here, as all of the servers stand still."""
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    script = (
        f"trap 'date +%s.%N > {ended}; exit 0' TERM; touch {ready}; while :; do sleep 0.05; done"
    )
    times = ("--session-timeout", "2", "--grace", "0.5")
    holder = start("lock", "lost", *times, "--", "sh", "-c", script)
    until(ready.exists)
    stopped = time.monotonic()
    for server in cluster.servers:
        server.signal(signal.SIGSTOP)

    def wake_all() -> None:
        for server in cluster.servers:
            server.signal(signal.SIGCONT)

    wake = threading.Timer(4, wake_all)
    wake.start()
    try:
        until(ended.exists)
        assert time.monotonic() - stopped < 2.0, "before the session's timeout is over"
        assert holder.wait(timeout=20) == ExitCode.GRANT_LOST
    finally:
        wake.join()
        holder.kill()
    anyio.run(cluster.wait_ready, 30.0)


@pytest.mark.slow
def test_the_demo_in_a_pipe_ends_with_0_and_says_that_nothing_was_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "folkmoot.cli", "demo", "--quick"],
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost." in done.stdout
    assert "the leader, is gone" in done.stdout
    assert "is back and has caught up" in done.stdout
    assert "\x1b" not in done.stdout, "no colours in a pipe"
