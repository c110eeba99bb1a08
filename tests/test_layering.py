"""The architecture's two rules about imports, read from the sources with `ast`.

LAYERS: faces (cli, admin, testing, sync and the package root) -> primitives -> core -> transport,
one way only. The exception is the GROUND: `core.errors`, `core.types` and `core.config` hold words
that every layer needs, so anybody may import them (transport too), and they import nothing of the
package except one another. `folkmoot.core` itself, which Python runs before any of them, must be as
light.

PURITY: what is replicated or simulated reaches no clock, randomness, I/O, logging, thread or event
loop, and imports nothing of the package that does. In `primitives` the machine and its proxy share
a file, so anyio and the client are allowed there; clocks, randomness and I/O are not.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANKS = {"folkmoot.transport": 0, "folkmoot.core": 1, "folkmoot.primitives": 2}
FACE = 3
GROUND = ("folkmoot.core.errors", "folkmoot.core.types", "folkmoot.core.config")
PURE = (
    "folkmoot.core.admin",
    "folkmoot.core.allowance",
    "folkmoot.core.applied",
    "folkmoot.core.backups",
    "folkmoot.core.batch",
    "folkmoot.core.commands",
    "folkmoot.core.compacting",
    "folkmoot.core.connection",
    "folkmoot.core.connector",
    "folkmoot.core.context",
    "folkmoot.core.deadlines",
    "folkmoot.core.directory",
    "folkmoot.core.effects",
    "folkmoot.core.entry",
    "folkmoot.core.event_chain",
    "folkmoot.core.events",
    "folkmoot.core.forwarding",
    "folkmoot.core.freeze",
    "folkmoot.core.front",
    "folkmoot.core.intake",
    "folkmoot.core.jobs",
    "folkmoot.core.liveness",
    "folkmoot.core.machine",
    "folkmoot.core.multiplexer",
    "folkmoot.core.pipeline",
    "folkmoot.core.prefix",
    "folkmoot.core.prefix_events",
    "folkmoot.core.prefix_exchange",
    "folkmoot.core.prefix_frames",
    "folkmoot.core.prefix_install",
    "folkmoot.core.prefix_receiver",
    "folkmoot.core.prefix_sender",
    "folkmoot.core.prefix_table",
    "folkmoot.core.queries",
    "folkmoot.core.raft",
    "folkmoot.core.reading",
    "folkmoot.core.replica",
    "folkmoot.core.requests",
    "folkmoot.core.resource",
    "folkmoot.core.restore",
    "folkmoot.core.room",
    "folkmoot.core.routing",
    "folkmoot.core.session_client",
    "folkmoot.core.sessions",
    "folkmoot.core.survey",
    "folkmoot.core.targets",
    "folkmoot.core.timeouts",
    "folkmoot.core.traffic",
    "folkmoot.transport.codec",
    "folkmoot.transport.frame",
)
CLOCKS_CHANCE_AND_IO = """
    asyncio concurrent ctypes datetime fcntl glob importlib io logging mmap multiprocessing os
    pathlib queue random sched secrets select selectors shutil signal socket socketserver ssl
    subprocess tempfile threading time trio uuid uvloop
"""
HARMLESS = {"random.Random", "datetime.timedelta"}  # types: the values come in from outside
# `hash` and `id` differ from one replica to the next.
IMPURE_CALLS = {"open", "print", "input", "eval", "exec", "__import__", "hash", "id", "Random"}


def within(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def is_ground(module: str) -> bool:
    return module == "folkmoot.core" or within(module, GROUND)


def rank(module: str) -> int:
    return RANKS.get(".".join(module.split(".")[:2]), FACE)


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of all imports, also those in functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def layer_faults(module: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(tree):
        if name.startswith("."):
            yield f"{module}:{line} imports {name}: write the full name"
        elif within(name, ("folkmoot",)) and not within(name, GROUND):
            if is_ground(module):
                yield f"{module}:{line} is ground and imports {name}"
            elif rank(name) > rank(module):
                yield f"{module}:{line} imports {name}, which is a layer above it"


def purity_faults(module: str, tree: ast.Module) -> Iterator[str]:
    pure = within(module, PURE)
    if not pure and not within(module, ("folkmoot.primitives",)):
        return
    forbidden = {*CLOCKS_CHANCE_AND_IO.split(), *(["anyio"] if pure else [])}
    for line, name in imports(tree):
        if name.split(".")[0] in forbidden and name not in HARMLESS:
            yield f"{module}:{line} is pure and imports {name}"
        if pure and within(name, ("folkmoot",)) and not within(name, (*PURE, *GROUND)):
            yield f"{module}:{line} is pure and imports {name}, which is not listed as pure"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=called)) if called in IMPURE_CALLS:
                yield f"{module}:{node.lineno} is pure and calls {called}()"


def clock_faults(module: str, tree: ast.Module) -> Iterator[str]:
    """Find wall clocks in core: they jump. Loops use the monotonic clock, machines log time."""
    if within(module, ("folkmoot.core",)):
        wall = {"time.time", "time.time_ns"}
        for line, name in imports(tree):
            if name in wall:
                yield f"{module}:{line} imports {name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in wall:
                yield f"{module}:{node.lineno} reads {ast.unparse(node)}"


def faults(module: str, source: str) -> list[str]:
    tree = ast.parse(source)
    return [
        *layer_faults(module, tree),
        *purity_faults(module, tree),
        *clock_faults(module, tree),
    ]


def sources() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "folkmoot").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[module.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def test_imports_run_one_way_and_pure_modules_are_pure() -> None:
    found = sources()
    assert found, f"no sources under {ROOT / 'folkmoot'}"
    assert [fault for module, text in found.items() for fault in faults(module, text)] == []


def test_no_listed_module_is_missing() -> None:
    """Or a module could leave the rules by being renamed, and nobody would notice."""
    found = sources()
    if "folkmoot.core.server" in found:  # the last part of the core to be built
        assert [name for name in (*PURE, *GROUND) if name not in found] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("folkmoot.transport.tcp", "import folkmoot.core.server"),
        ("folkmoot.transport.tcp", "from folkmoot.core import server"),
        ("folkmoot.core.client", "from folkmoot.primitives.lock import Lock"),
        ("folkmoot.core.client", "def late():\n    from folkmoot import primitives"),
        ("folkmoot.core.client", "from folkmoot import open"),
        ("folkmoot.core.client", "import folkmoot"),
        ("folkmoot.core.client", "from . import server"),
        ("folkmoot.primitives.map", "from folkmoot.cli import main"),
        ("folkmoot.core.errors", "from folkmoot.core.batch import Batch"),
        ("folkmoot.core", "from folkmoot.core.client import Client"),
        ("folkmoot.core.raft.node", "import time"),
        ("folkmoot.core.raft.node", "from os import path"),
        ("folkmoot.core.raft.node", "import random"),
        ("folkmoot.core.raft.node", "from random import random"),
        ("folkmoot.core.raft.node", "from random import Random\nspread = Random()"),
        ("folkmoot.core.raft.node", "from folkmoot.core.server import Server"),
        ("folkmoot.core.sessions", "def late():\n    import logging"),
        ("folkmoot.core.machine", "file = open('state')"),
        ("folkmoot.core.session_client", "import anyio"),
        ("folkmoot.transport.frame", "import socket"),
        ("folkmoot.primitives.lock", "from datetime import datetime"),
        ("folkmoot.primitives.lock", "import time"),
        ("folkmoot.primitives.map", "slot = hash(key) % 8"),
        ("folkmoot.core.server", "import time\nnow = time.time()"),
        ("folkmoot.core.server", "from time import time"),
    ],
)
def test_a_fault_is_found(module: str, source: str) -> None:
    assert faults(module, source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("folkmoot", "from folkmoot.core.client import open"),
        ("folkmoot.cli", "import folkmoot\nimport time"),
        ("folkmoot.primitives.lock", "import anyio\nfrom datetime import timedelta"),
        ("folkmoot.primitives.lock", "from folkmoot.core.client import Client"),
        ("folkmoot.core.server", "import time\nfrom folkmoot.transport import tcp"),
        ("folkmoot.core.raft.node", "from random import Random\nimport attrs"),
        ("folkmoot.core.raft.node", "from folkmoot.core.raft import quorum"),
        ("folkmoot.core.config", "import os\nfrom folkmoot.core.errors import UsageError"),
        ("folkmoot.transport.codec", "from folkmoot.core.errors import RemoteProtocolError"),
    ],
)
def test_what_is_allowed_is_not_refused(module: str, source: str) -> None:
    assert faults(module, source) == []


def test_importing_the_package_is_light() -> None:
    """`import folkmoot` loads only anyio, msgpack and attrs; the rest loads where it is used."""
    script = (
        "import sys; before = set(sys.modules); import folkmoot;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name for name in run.stdout.split() if not name.startswith("_")}
    ours = {"folkmoot", "anyio", "msgpack", "attr", "attrs"}
    theirs = {"sniffio", "idna", "typing_extensions"}  # what anyio itself needs
    theirs |= {"cython_runtime"}  # msgpack's
    assert loaded - ours - theirs - sys.stdlib_module_names == set()
