"""The command line starts fast: what a command does not need is not imported.

Completion asks for little, and is silent.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import sandfleet
import sandfleet.languages
import sandfleet_config
import sandfleet_config.store
from sandfleet.cli import completion
from sandfleet.cli.lazy_group import GROUPS, LISTS, SUBMIT, find_command
from typer.main import get_command

if TYPE_CHECKING:
    from types import ModuleType

HEAVY = ("redis", "celery", "kombu", "asyncio", "rich.console", "msgspec", "sandfleet.fleet")
"""Packages of which each costs as much as the start of Python itself."""


def import_by(words: list[str], env: dict[str, str] | None = None) -> tuple[set[str], str]:
    """Run the command in a process of its own; return what it imported, and what it printed."""
    code = f"""
import sys
sys.argv = ['sandfleet', *{words!r}]
from sandfleet.cli import main
try:
    main()
except SystemExit:
    pass
print('MODULES', *sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    printed, _, modules = done.stdout.partition("MODULES ")
    return set(modules.split()), printed + done.stderr


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["submit", "--help"], ["run", "--help"], ["nonsense"]])
def test_what_asks_nothing_of_the_fleet_imports_nothing_heavy(words: list[str]) -> None:
    modules, printed = import_by(words)
    assert "sandfleet" in printed
    assert [name for name in HEAVY if name in modules] == []
    if words[0].startswith("--"):
        assert "pydantic" not in modules  # typer itself imports it for the options of a command
    if words == ["--version"]:
        assert "typer" not in modules


def test_a_job_without_files_imports_neither_tables_nor_stores() -> None:
    modules, printed = import_by(["run", "--", "true"], {**os.environ, "SANDFLEET_REDIS_URL": "unix:///no/such"})
    assert "cannot reach Redis" in printed
    assert "sandfleet.fleet" in modules
    unused: tuple[str, ...] = (
        "sandfleet.batch",
        "sandfleet.results",
        "sandfleet.retry",
        "sandfleet_config.store.opening",
        "boto3",
    )
    unused += ("sandfleet.channel.redis_overview", "sandfleet.channel.fleet_state")
    unused += ("sandfleet_config.outcome",)  # imported after the submit, so it does not delay the job
    unused += ("sandfleet.languages.program", "sandfleet.overview.job_view", "sandfleet.cli.submit_command")
    assert [name for name in unused if name in modules] == []


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--", "true"],
        ["run", "--live", "--", "true"],
        ["submit", "--array", "0-9", "--", "true"],
        ["batch", "list"],
        ["batch", "results", "b", "-o", "-"],
    ],
)
def test_the_garbage_collector_is_on_and_does_not_run_before_a_command_connects(words: list[str]) -> None:
    code = f"""
import gc, os, socket, sys
sys.argv = ['sandfleet', *{words!r}]
from sandfleet.cli import main
runs = []
gc.callbacks.append(lambda phase, info: runs.append(info))
socket.socket.connect = lambda *_: os._exit(print(gc.isenabled(), len(runs), flush=True) or 0)
main()
"""
    env = {**os.environ, "SANDFLEET_REDIS_URL": "unix:///no/such"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    is_paused = words[0] == "submit"  # while it checks and queues, and no longer
    assert done.stdout == f"{not is_paused} 0\n"


def test_the_list_of_commands_has_the_help_of_what_it_does_not_import() -> None:
    from importlib import import_module

    for name, text in GROUPS.items():
        assert get_command(import_module(f"sandfleet.cli.{name}").app).help == text
    for name, text in {**LISTS, **SUBMIT}.items():
        command: Any = find_command(name)
        assert command.help.partition("\n\n")[0] == text


@pytest.mark.parametrize("module", [sandfleet, sandfleet.languages, sandfleet_config, sandfleet_config.store])
def test_each_public_name_is_imported_when_it_is_used(module: ModuleType) -> None:
    assert sorted({name: found for found, names in module._NAMES.items() for name in names.split()}) == sorted(
        module.__all__
    )
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_words_of_options_are_completed() -> None:
    assert completion.complete_state("") == ["queued", "waiting", "running", "ended"]
    assert completion.complete_code("time") == ["TIMEOUT"]
    assert completion.complete_code("OK,TIME") == ["OK,TIMEOUT"]
    assert completion.of_words("head", "tail")("t") == ["tail"]


def test_a_shell_asks_for_a_command_and_gets_its_names() -> None:
    env = {"_SANDFLEET_COMPLETE": "complete_bash", "COMP_WORDS": "sandfleet ba", "COMP_CWORD": "1"}
    modules, printed = import_by([], env)
    assert printed.split() == ["batches", "batch"]
    assert "redis" not in modules


def test_completion_is_silent_and_short_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("unix:///no/such", "nonsense://x", "redis://127.0.0.1:1"):
        monkeypatch.setenv("SANDFLEET_REDIS_URL", url)
        began = time.monotonic()
        assert completion.complete_batch("") == []
        assert time.monotonic() - began < 5
