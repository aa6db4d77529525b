"""Messages of `sandfleet-worker` for a mistake on its command line."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any

import pytest
import redis
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.cli import main
from sandfleet_worker.commands.failures import PreflightFailed
from sandfleet_worker.commands.start import open_host
from sandfleet_worker.host import Host

if TYPE_CHECKING:
    from pathlib import Path


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_mistake_is_one_line_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SANDFLEET_IMAGES__ROOT", str(tmp_path / "images"))
    (tmp_path / "file").write_text("")
    for argv, code, said in (
        (["strat"], 2, "no such command: strat: did you mean start?"),
        (["start", "--concurrency", "0"], 2, "--concurrency: must be at least 1"),
        (["start", "--concurrency", "many"], 2, "--concurrency: must be a whole number"),
        (["local", "--flower-prot", "1"], 2, "no such option: --flower-prot: did you mean --flower-port?"),
        (["images", "rm"], 2, "missing argument NAME (sandfleet-worker images rm --help tells more)"),
        (["images", "rm", "nope"], 1, "IMAGE_NOT_FOUND: no image nope here (this host has no image at all)"),
    ):
        assert run(*argv) == code, argv
        err = capfd.readouterr().err
        assert err.startswith(f"error: {said}"), err
        assert err.count("\n") == 1
    monkeypatch.setenv("SANDFLEET_IMAGES__ROOT", str(tmp_path / "file" / "images"))
    assert run("images", "add", "x", "rootfs:/etc") == 1
    err = capfd.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'file' / 'images'}")
    assert "Traceback" not in err
    monkeypatch.setenv("SANDFLEET_ALLOW_UNENFORCED", "gpu")
    for argv in (["images", "list"], ["clean"]):
        assert run(*argv) == 1
        assert (
            capfd.readouterr().err == "error: SANDFLEET_ALLOW_UNENFORCED: must be 'memory', 'cpu', 'pids' or 'disk'\n"
        )


def test_an_empty_list_of_images_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SANDFLEET_IMAGES__ROOT", str(tmp_path / "images"))
    assert run("images", "list") == 0
    assert capfd.readouterr() == ("", "there are no images here: sandfleet-worker images add python\n")


def test_the_help_is_readable(capfd: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    shown = "".join(capfd.readouterr())
    assert "start" in shown
    assert "doctor" in shown
    assert "``" not in shown
    assert run("--help") == 0


def test_the_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"sandfleet-worker \d+\.\d+\.\d+\n", capfd.readouterr().out)


def test_a_start_that_fails_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WorkerSettings.model_validate({"redis_url": "redis://there:1/0"})
    nothing: Any = None
    for error, told in (
        (redis.ConnectionError("gone"), "redis: redis://there:1/0: gone\n  fix: start Redis again, then the worker"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/slots/x"),
            "this host: /slots/x: No space left on device\n",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "this host: [Errno 24] Too many open files\n  fix: "),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Host, "open", fail)
        with pytest.raises(PreflightFailed) as caught:
            open_host(settings, nothing, nothing)
        assert str(caught.value).startswith(told)
