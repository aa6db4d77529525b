"""Transfers end soon after Ctrl-C, or after the error of another one."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sandfleet import FleetUnavailable, SandboxResult
from sandfleet.files.parallel import Stopped
from sandfleet.testing import FakeFleet, WithArtifacts
from sandfleet_config.store import StoreDown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

END = SandboxResult(exit_code=0, stdout="", stderr="", duration=0.1)


def interrupt() -> None:
    """Send Ctrl-C to the caller, who waits for its threads."""
    time.sleep(0.2)
    caller = threading.main_thread().ident
    assert caller is not None
    signal.pthread_kill(caller, signal.SIGINT)


@pytest.fixture(autouse=True)
def listen_to_ctrl_c() -> Iterator[None]:
    """Hear SIGINT also if a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet(lambda _: WithArtifacts(END, {"a": b"a"}))


def use_endless_uploads(fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch, begin: Callable[[], object]) -> list[str]:
    """Let no upload end; each calls `begin` first. Return what ended them."""
    ended: list[str] = []

    def put_file(sha256: str, path: Path, check: Callable[[], None]) -> bool:
        begin()
        try:
            while True:
                check()
                time.sleep(0.005)
        except Stopped:
            ended.append(path.name)
            raise

    monkeypatch.setattr(fleet.store, "put_file", put_file)
    return ended


def test_ctrl_c_ends_the_upload_of_one_large_file(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(b"x")
    ended = use_endless_uploads(fleet, monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fleet.upload(tmp_path / "large")
    assert ended == ["large"]


def test_the_error_of_one_upload_ends_the_others(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(b"x")
    ended = use_endless_uploads(fleet, monkeypatch, lambda: None)

    def put_bytes(sha256: str, data: bytes) -> bool:
        raise StoreDown("the store is down")

    monkeypatch.setattr(fleet.store, "put_bytes", put_bytes)
    with pytest.raises(FleetUnavailable, match="the store is down"):
        fleet.upload_many([tmp_path / "large", b"y"])
    assert ended == ["large"]


def test_ctrl_c_ends_saving_and_leaves_no_temporary_file(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read(sha256: str) -> Iterator[bytes]:
        interrupt()
        while True:
            time.sleep(0.005)
            yield b""

    monkeypatch.setattr(fleet.store, "read", read)
    with pytest.raises(KeyboardInterrupt):
        fleet.submit({"image": "x"}).artifacts.save(tmp_path)
    assert not list(tmp_path.iterdir())
