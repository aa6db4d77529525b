"""Findings of the doctor about images, datasets and registries."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.commands.checks import State
from sandfleet_worker.commands.image_checks import check_datasets, check_images, check_registries

if TYPE_CHECKING:
    from pathlib import Path


def new_store(*names: str, damaged: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(list_with_damaged=lambda: ([SimpleNamespace(name=name) for name in names], damaged))


def new_contents(*names: str, mounts: bool = True) -> Any:
    return SimpleNamespace(datasets=new_store(*names), mounts_datasets=lambda: mounts)


def test_damaged_images_are_told_and_many_are_cut() -> None:
    assert check_images(new_store()).fix == "sandfleet-worker images add python"
    assert check_images(new_store("b", "a")).detail == "a, b"
    assert check_images(new_store(*map(str, range(30)))).detail.endswith(" and 10 more")
    finding = check_images(new_store("a", damaged=("image b is damaged: add it again",)))
    assert (finding.state, finding.detail) == (State.WARNING, "image b is damaged: add it again")


def test_datasets_that_no_job_gets_here_are_told() -> None:
    assert check_datasets(new_contents("corpus")).state is State.OK
    finding = check_datasets(new_contents("corpus", mounts=False))
    assert (finding.state, "from 20260126 on" in finding.fix) == (State.WARNING, True)
    assert check_datasets(new_contents(mounts=False)).state is State.TIP


def test_what_keeps_a_host_from_pulling_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(**settings: Any) -> tuple[State, str, str]:
        finding = check_registries(ImagesSettings(root=tmp_path, **settings))
        return finding.state, finding.detail, finding.fix

    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/skopeo")
    assert check()[0] is State.OK
    state, detail, _ = check(pull_from=("python", "registry.example"))
    assert (state, "python, registry.example; without passwords" in detail) == (State.OK, True)
    auth = tmp_path / "auth.json"
    assert "cannot be read" in check(pull_from=("python",), auth_file=auth)[1]
    auth.write_text("{}")
    auth.chmod(0o644)
    assert f"chmod 600 {auth}" in check(pull_from=("python",), auth_file=auth)[1]
    auth.chmod(0o600)
    assert f"passwords are in {auth}" in check(pull_from=("python",), auth_file=auth)[1]
    assert check(pull_from=("python",), ca_dir=tmp_path)[:2] == (
        State.WARNING,
        f"SANDFLEET_IMAGES__CA_DIR: {tmp_path} has no file *.crt",
    )
    (tmp_path / "ca.crt").touch()
    assert check(pull_from=("python",), ca_dir=tmp_path)[0] is State.OK
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert check(pull_from=("python",))[2] == "install skopeo"
