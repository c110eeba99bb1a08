"""Run every ```python block of the README and of docs/, so that no example can rot.

A block runs as a program of its own, as `__main__`, in an empty directory. If it awaits at top
level it runs inside `async with folkmoot.open() as cluster`, so that a page can show two lines
about a map without twelve lines around them. An HTML comment on the line before changes this:

    <!-- snippet: continues -->       go on in the namespace of the block before it, in one run
    <!-- snippet: skip REASON -->     do not run it; the reason shows in the report

Each program runs on asyncio and on trio.
"""

import ast
import functools
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import anyio
import attrs
import pytest

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*)")
MARK = re.compile(r"^ *<!-- snippet: *(?P<word>[a-z]+) *(?P<reason>.*?) *-->$")


@attrs.define
class Program:
    """One block, or several that continue one another."""

    path: str
    line: int
    blocks: list[tuple[int, str]]  # (line of the fence, source)
    skip: str | None = None

    def compile(self) -> list[CodeType]:
        """Compile with the page's own line numbers, so that a traceback points into the page."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return [
            compile("\n" * line + text, self.path, "exec", flags=flags)
            for line, text in self.blocks
        ]


def programs(path: str, text: str) -> list[Program]:
    """Cut a page into the programs that its blocks make; raise ValueError for a mark unknown."""
    found: list[Program] = []
    lines = iter(enumerate(text.splitlines(), start=1))
    mark: re.Match[str] | None = None
    for number, line in lines:
        fence = FENCE.match(line)
        if fence is None:
            mark = MARK.match(line)
            continue
        body: list[str] = []
        for _, inner in lines:
            if re.fullmatch(rf" *{fence['ticks']}`* *", inner):
                break
            body.append(inner)
        else:
            raise ValueError(f"{path}:{number}: this block is never closed")
        where = f"{path}:{number}"
        word, mark, reason = (mark["word"], None, mark["reason"]) if mark else ("", None, "")
        if fence["language"] in {"py", "python3", "pycon", "Python"}:
            raise ValueError(f"{where}: write ```python, or nobody runs this block")
        if fence["language"] != "python":
            if word:
                raise ValueError(f"{where}: a snippet mark before a block that is not python")
            continue
        block = (number, textwrap.dedent("\n".join(body)))
        match word, bool(reason):
            case "", False:
                found.append(Program(path, number, [block]))
            case "continues", False:
                if not found or found[-1].skip is not None:
                    raise ValueError(f"{where}: there is no block before it to continue")
                found[-1].blocks.append(block)
            case "skip", True:
                found.append(Program(path, number, [block], skip=reason))
            case _:
                raise ValueError(f"{where}: unknown mark '{word} {reason}', or skip lacks a reason")
    return found


def pages() -> list[Program]:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        program
        for path in paths
        for program in programs(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]


def run(program: Program, backend: str, namespace: dict[str, Any]) -> None:
    codes = program.compile()
    if not any(code.co_flags & inspect.CO_COROUTINE for code in codes):
        for code in codes:
            exec(code, namespace)
        return

    async def main() -> None:
        import folkmoot

        async with folkmoot.open() as cluster:
            namespace["cluster"] = cluster
            for code in codes:
                if inspect.iscoroutine(result := eval(code, namespace)):
                    await result

    anyio.run(main, backend=backend)


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Be a fresh `__main__` in an empty directory, untouched by the caller's environment."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOLKMOOT_URL", raising=False)
    return vars(main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("program", pages(), ids=lambda program: f"{program.path}:{program.line}")
def test_snippet(
    program: Program, backend: str, namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if program.skip is not None:
        pytest.skip(program.skip)
    monkeypatch.setattr(anyio, "run", functools.partial(anyio.run, backend=backend))
    run(program, backend, namespace)


PAGE = """
```python
first = 1
```
<!-- snippet: continues -->
```python
second = first + 1
raise ZeroDivisionError
```
```sh
make test
```
<!-- snippet: skip needs a cluster -->
```python
never()
```
"""


def test_a_page_is_cut_into_programs() -> None:
    run_together, skipped = programs("page.md", PAGE)
    assert [line for line, _ in run_together.blocks] == [2, 6]
    assert run_together.skip is None
    assert skipped.skip == "needs a cluster"


def test_a_failing_block_fails_and_its_line_is_the_pages(namespace: dict[str, Any]) -> None:
    program = programs("page.md", PAGE)[0]
    with pytest.raises(ZeroDivisionError) as caught:
        run(program, "asyncio", namespace)
    assert namespace["second"] == 2
    assert caught.traceback[-1].lineno + 1 == 8


@pytest.mark.parametrize(
    "page",
    [
        "```python\nnever_closed = 1",
        "```py\nnever_run = 1\n```",
        "<!-- snippet: skip -->\n```python\n```",
        "<!-- snippet: sleeps -->\n```python\n```",
        "<!-- snippet: continues -->\n```python\n```",
        "<!-- snippet: skip why -->\n```sh\n```",
    ],
)
def test_a_block_that_would_not_run_as_meant_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:\d+: "):
        programs("page.md", page)
