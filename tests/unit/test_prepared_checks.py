"""Findings of the doctor about prepared spares."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.commands import prepared_checks
from sandfleet_worker.commands.checks import Finding, State
from sandfleet_worker.commands.prepared_checks import check_prepared
from sandfleet_worker.sandbox.prepared.registry import FILE, Preparations, Registered

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCI = Registered(image="python-data", name="sci", modules=("numpy",))


class Redis:
    """Answers with the statuses of workers, by their owners."""

    def __init__(self, statuses: Mapping[str, object] | None) -> None:
        self._statuses = statuses

    def zrange(self, *_: object) -> list[bytes]:
        if self._statuses is None:
            raise redis.ConnectionError("gone")
        return [owner.encode() for owner in self._statuses]

    def mget(self, keys: list[str]) -> list[bytes | None]:
        assert self._statuses is not None
        found = [self._statuses[key.split(":", 2)[2]] for key in keys]
        return [item if isinstance(item, bytes) or item is None else json.dumps(item).encode() for item in found]

    def close(self) -> None:
        pass


def check(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    statuses: Mapping[str, object] | None,
    images: tuple[str, ...] = ("python-data",),
    **settings: Any,
) -> list[Finding]:
    monkeypatch.setattr(prepared_checks, "connect", lambda _: Redis(statuses))
    given = {"images": {"root": root}, "host": "h", "warm": {"size": 2}, **settings}
    store: Any = SimpleNamespace(list_references=lambda: set(images))
    return list(check_prepared(WorkerSettings.model_validate(given), store))


def status(starts: int, quarantined: tuple[str, ...] = (), **misses: int) -> dict[str, object]:
    return {"prepared": {"starts": starts, "misses": misses, "quarantined": list(quarantined)}}


def register(root: Path) -> None:
    Preparations(root, WorkerSettings().prepared).add(SCI)


def test_what_is_prepared_is_told_and_how_often_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path)
    statuses = {"h:1:a": status(30, command=2, no_spare=5), "h:2:b": status(10, command=1), "other:1:c": status(999)}
    listed, use = check(tmp_path, monkeypatch, statuses)
    assert (listed.state, listed.detail) == (State.OK, "python-data:sci")
    assert (use.state, use.detail, use.fix) == (
        State.OK,
        "40 of 48 jobs that asked; not the others: no_spare 5, command 3",
        "",
    )


def test_frequent_misses_name_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path)
    _, use = check(tmp_path, monkeypatch, {"h:1:a": status(3, environment=30, no_spare=2)})
    assert use.state is State.TIP
    assert "OMP_*" in use.fix


def test_a_quarantine_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path)
    _, warned, use = check(tmp_path, monkeypatch, {"h:1:a": status(1, ("python-data:sci",), quarantine=3)})
    assert (warned.state, warned.detail) == (State.WARNING, "in quarantine after failures: python-data:sci")
    assert use.detail == "1 of 4 jobs that asked; not the others: quarantine 3"


@pytest.mark.parametrize("statuses", [None, {}, {"other:1:c": status(9)}])
def test_without_a_running_worker_only_the_list_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: dict[str, object] | None
) -> None:
    register(tmp_path)
    assert [found.detail for found in check(tmp_path, monkeypatch, statuses)] == ["python-data:sci"]


def test_workers_that_nobody_asked_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path)
    _, use = check(tmp_path, monkeypatch, {"h:1:a": {"state": "up"}})
    assert (use.state, use.detail) == (State.OK, "no job of the running workers has asked for a preparation")


@pytest.mark.parametrize(
    "lie",
    [b"{", b"[]", None, {"prepared": 5}, {"prepared": {"starts": "x", "misses": {}, "quarantined": []}},
     {"prepared": {"starts": 1, "misses": [], "quarantined": 7}}, {"prepared": {"starts": float("inf"), "misses": {},
      "quarantined": []}}],
)  # fmt: skip
def test_forged_statuses_break_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: object) -> None:
    register(tmp_path)
    _, use = check(tmp_path, monkeypatch, {"h:1:a": lie})
    assert use.state is State.OK


def test_settings_that_use_no_preparation_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path)
    (off,) = check(tmp_path, monkeypatch, {}, prepared={"start": "off"})
    assert (off.state, off.detail) == (State.OK, "none: SANDFLEET_PREPARED__START is off")
    (none,) = check(tmp_path, monkeypatch, {}, warm={"size": 0})
    assert (none.state, none.fix) == (State.WARNING, "set SANDFLEET_WARM__SIZE to 1 or more")
    (gone,) = check(tmp_path, monkeypatch, {}, images=("python",))
    assert (gone.state, gone.detail) == (State.WARNING, "python-data:sci; not here: python-data")
    (python,) = check(tmp_path, monkeypatch, {}, prepared={"start": "python"})
    assert python.detail == "python-data:sci; also the plain interpreter of images with Python"


def test_a_host_without_preparations_gets_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = check(tmp_path, monkeypatch, {})
    assert (found.state, found.detail) == (State.OK, "no imports are prepared here")
    (tmp_path / FILE).write_text("{")
    (damaged,) = check(tmp_path, monkeypatch, {})
    assert (damaged.state, "is damaged: remove it" in damaged.detail) == (State.WARNING, True)
