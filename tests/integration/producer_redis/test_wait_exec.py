"""``sandfleet batch wait --exec``: a command runs once the batch is done, and its end is told."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from bare_redis import SPEC
from sandfleet.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet import Fleet


@pytest.fixture(autouse=True)
def _redis_url(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_REDIS_URL", redis_server.url)


def test_the_command_gets_name_and_counts(fleet: Fleet, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fleet.submit_many([SPEC] * 3, batch="it's nightly; ls")
    fleet.batch("it's nightly; ls").cancel()
    command = f'cat > {tmp_path}/stdin; echo "$SANDFLEET_BATCH|$SANDFLEET_TOTAL|$SANDFLEET_OK|$SANDFLEET_NOT_OK"'
    assert main(["batch", "wait", "it's nightly; ls", "--exec", command]) == 1
    assert "it's nightly; ls|3|0|3\n" in capfd.readouterr().out
    found = json.loads((tmp_path / "stdin").read_text())
    assert found == {"batch": "it's nightly; ls", "total": 3, "codes": {"CANCELLED": 3}}


def test_the_command_may_call_sandfleet(fleet: Fleet, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fleet.submit_many([SPEC], batch="b")
    fleet.batch("b").cancel()
    program = f"{sys.executable} -m sandfleet.cli"
    command = f'{program} batch results "$SANDFLEET_BATCH" -o {tmp_path}/r.csv'
    assert main(["batch", "wait", "b", "--exec", command]) == 1, "the job was cancelled"
    assert "1 row in" in capfd.readouterr().err
    assert (tmp_path / "r.csv").exists()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("exit 3", "the command of --exec ended with exit code 3"),
        ("kill -9 $$", "the command of --exec was killed by signal 9"),
        ("no-such-program", "exit code 127: the shell did not find it"),
        ("exec true < /dev/null", ""),
    ],
)
def test_the_end_of_the_command_is_told(
    fleet: Fleet, command: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fleet.submit_many([SPEC], batch="b")
    fleet.batch("b").cancel()
    assert main(["batch", "wait", "b", "--exec", command]) == 1
    assert told in capfd.readouterr().err


def test_nothing_runs_if_the_wait_ends_early(fleet: Fleet, tmp_path: Path) -> None:
    fleet.submit_many([SPEC], batch="b")
    assert main(["batch", "wait", "b", "--timeout", "0.2", "--exec", f"touch {tmp_path}/ran"]) == 124
    assert not (tmp_path / "ran").exists()
