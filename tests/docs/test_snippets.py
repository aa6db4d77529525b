"""Each command of README and docs works, and prints what they show."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from pages import NOT_RUN_LIST, PAGES, ROOT, RUN_LANGUAGES, Block, find_faults, new_not_run_list, read_blocks
from terminal import Terminal, is_as_shown, split_console

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from docs_fleet import DocsFleet

BLOCKS = {str(page.relative_to(ROOT)): list(read_blocks(page)) for page in PAGES}
RUN_PAGES = [name for name, blocks in BLOCKS.items() if any(block.is_run for block in blocks)]


class Page:
    """A page's own folder, shell and Python names."""

    def __init__(self, folder: Path, fleet: DocsFleet, terminal: Terminal) -> None:
        self._folder = folder
        self._fleet = fleet
        self._terminal = terminal
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._printed = ""

    def take(self, block: Block) -> None:
        """Do with a block what its language and its remark say."""
        text = self._fleet.adapt(block.text)
        if block.file:
            (self._folder / block.file).write_text(text)
        elif block.is_output:
            _compare(block, "the block before", text, self._printed)
        elif not block.is_run:
            return
        elif block.language == "python":
            self._printed = self._run_python(block, text)
        elif block.language == "console":
            self._run_console(block, text)
        else:
            printed, code = self._terminal.run(text)
            assert code == 0, f"{block.place}: exit {code}:\n{printed}"

    def _run_python(self, block: Block, text: str) -> str:
        page = "\n" * block.line + text  # so that a traceback names the page's line
        code = compile(page, ROOT / block.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            found = eval(code, self._names)  # noqa: S307  our own page
            if inspect.iscoroutine(found):
                asyncio.run(found)
        return printed.getvalue()

    def _run_console(self, block: Block, text: str) -> None:
        for command, shown in split_console(text):
            printed, code = self._terminal.run(command)
            if shown:
                _compare(block, command, shown, printed)
            else:
                assert code == 0, f"{block.place}: {command}: exit {code}:\n{printed}"


def _compare(block: Block, command: str, shown: str, printed: str) -> None:
    assert is_as_shown(shown, printed), f"{block.place}: {command}\n--- shown\n{shown}\n--- printed\n{printed}"


@pytest.fixture
def page(docs_fleet: DocsFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page's folder and shell, beside the running fleet."""
    for name in [*os.environ]:
        if name.startswith(("SANDFLEET_", "CELERY_")):
            monkeypatch.delenv(name)
    for name, value in docs_fleet.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    with Terminal(tmp_path, docs_fleet.env) as terminal:
        yield Page(tmp_path, docs_fleet, terminal)


@pytest.mark.parametrize("name", RUN_PAGES)
def test_each_block_of_the_page_runs(page: Page, tmp_path: Path, name: str) -> None:
    for sample in (ROOT / name).parent.glob("*.jsonl"):
        shutil.copy(sample, tmp_path)
    for block in BLOCKS[name]:
        page.take(block)


def test_what_is_not_run_is_listed_with_its_reason() -> None:
    told = "this block is not run: if that must be so, run python tests/support/pages.py --write"
    assert NOT_RUN_LIST.read_text() == new_not_run_list(), told


def test_a_remark_is_one_that_is_known() -> None:
    for blocks in BLOCKS.values():
        for block in blocks:
            known = block.why_not_run or block.file or block.is_output
            assert known or not block.remark.startswith(("not", "file", "output")), f"{block.place}: {block.remark}"


def test_each_block_names_its_language_and_each_remark_has_its_block() -> None:
    assert [fault for page in PAGES for fault in find_faults(page)] == []


def test_a_block_that_no_test_would_look_at_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("""
```python
print(1)
```

<!-- output -->
```
1
```

<!-- file: jobs.jsonl -->
Text.

```shell
true
```

<!-- output -->
""")
    faults = [fault.split(", ")[0] for fault in find_faults(path)]
    assert faults == [
        "page.md:7: the fence names none of python",
        "page.md:14: the fence names none of python",
        "page.md:11: no block follows <!-- file: jobs.jsonl -->",
        "page.md:18: no block follows <!-- output -->",
    ]


def test_a_page_is_read_block_by_block(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("""
```console
$ true
```

<!-- not run: needs docker -->
```sh
docker ps
```

<!-- file: jobs.jsonl -->
```json
{}
```

- item

  ```python
  print(1)
  ```

<!-- output -->
```text
1
```
""")
    blocks = list(read_blocks(path))
    assert [block.language for block in blocks] == ["console", "sh", "json", "python", "text"]
    assert [block.is_run for block in blocks] == [True, False, False, True, False]
    assert blocks[1].why_not_run == "needs docker"
    assert blocks[2].file == "jobs.jsonl"
    assert blocks[3].text == "print(1)\n"
    assert blocks[4].is_output
    assert {"console", "sh", "python"} < set(RUN_LANGUAGES)


def test_a_console_block_is_split_into_commands_and_output() -> None:
    text = "$ cat > x <<'EOF'\n$HOME\nEOF\n$ echo 'a\n> b'\na\nb\n$ true \\\n>   && echo 1\n1\n"
    steps = split_console(text)
    assert steps == [("cat > x <<'EOF'\n$HOME\nEOF", ""), ("echo 'a\nb'", "a\nb\n"), ("true \\\n  && echo 1", "1\n")]


def test_what_differs_from_the_page_is_found(tmp_path: Path) -> None:
    with Terminal(tmp_path, dict(os.environ)) as terminal:
        assert terminal.run("x=3; echo one; echo two >&2; (exit $x)") == ("one\ntwo\n", 3)
        assert terminal.run("echo $? $x; cat") == ("3 3\n", 0)
    assert is_as_shown("id ...\n  ok", "id 1234\n  ok\n\n")
    assert not is_as_shown("id ...\n ok", "id 1234\n no\n")
    assert not is_as_shown("", "more\n")


def test_a_command_that_never_ends_is_told(tmp_path: Path) -> None:
    with Terminal(tmp_path, dict(os.environ)) as terminal, pytest.raises(TimeoutError, match="so far: hi"):
        terminal.run("echo hi; sleep 30", timeout_seconds=0.5)
