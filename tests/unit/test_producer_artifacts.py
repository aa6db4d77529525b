"""Artifacts: read, and saved where names and links of strangers do no harm."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet import (
    Artifact,
    ArtifactsNotSaved,
    ErrorCode,
    FileMissing,
    Outcome,
    SandboxResult,
    SandboxSpec,
)
from sandfleet.files import saving
from sandfleet.testing import FakeFleet, WithArtifacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sandfleet import JobArtifacts

END = SandboxResult(exit_code=0, stdout="", stderr="", duration=0.1)


def new_fleet(files: Mapping[str, bytes], lost: str | None = None) -> FakeFleet:
    return FakeFleet(lambda _: WithArtifacts(END, files, lost))


def leave(files: Mapping[str, bytes], lost: str | None = None) -> JobArtifacts:
    return new_fleet(files, lost).submit({"image": "x"}).artifacts


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_artifacts_are_a_list_that_is_saved_and_read(tmp_path: Path) -> None:
    files = {"out/a.png": b"png", "out/deep/b.csv": b"1,2", "c": b""}
    artifacts = leave(files)
    assert {artifact.path: artifact.size for artifact in artifacts} == {"out/a.png": 3, "out/deep/b.csv": 3, "c": 0}
    assert artifacts.lost is None
    assert artifacts.open("out/a.png").read() == artifacts.open("/work/out/a.png").read() == b"png"
    saved = artifacts.save(tmp_path / "new/results")
    assert saved == [tmp_path / "new/results" / name for name in files]
    assert list_files(tmp_path / "new/results") == files


def test_no_such_artifact_and_lost_ones_are_told() -> None:
    with pytest.raises(FileMissing, match=r"has no artifact b \(the sandbox is gone\)"):
        leave({"a": b""}, "the sandbox is gone").open("b")


def test_a_saved_file_may_be_executed_if_the_program_says_so(tmp_path: Path) -> None:
    fleet = new_fleet({})
    ref = fleet.upload(b"x")
    modes = {"a": "0644", "b": "0755", "c": "0000", "d": "4777", "e": "\x1b[1m"}
    found = tuple(Artifact(name, ref.size, ref.sha256, mode) for name, mode in modes.items())
    before = os.umask(0o022)
    try:
        fleet.artifacts_of(Outcome.of(ErrorCode.OK, "j", artifacts=found)).save(tmp_path)
    finally:
        os.umask(before)
    assert {name: f"{(tmp_path / name).stat().st_mode & 0o7777:04o}" for name in modes} == {
        "a": "0644",
        "b": "0755",
        "c": "0644",
        "d": "0755",
        "e": "0644",
    }


@pytest.mark.parametrize("is_overwritten", [False, True])
def test_a_file_has_all_its_bytes_when_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_overwritten: bool
) -> None:
    sizes: list[int] = []
    for name in ("link", "replace"):
        publish = getattr(os, name)

        def note(
            source: str, target: str, *, src_dir_fd: int, publish: Callable[..., None] = publish, **how: Any
        ) -> None:
            sizes.append(os.stat(source, dir_fd=src_dir_fd).st_size)
            publish(source, target, src_dir_fd=src_dir_fd, **how)

        monkeypatch.setattr(os, name, note)
    leave({"a": b"12345"}).save(tmp_path, overwrite=is_overwritten)
    assert sizes == [5]


HOSTILE = {
    "/etc/evil": "absolute",
    "../evil": "..",
    "a/../../evil": "..",
    "a//b": "empty part",
    "./a": "empty part",
    "": "empty part",
    "a\nb": "control characters",
    "a\x1b[2Jb": "control characters",
    "a\x00b": "control characters",
    "gpj\u202etxt.exe": "control characters",
    "a\u2028b": "control characters",
    "x" * 256: "more than 255 bytes",
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_name_is_refused_and_all_others_are_saved(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in/results"
    artifacts = leave({"first": b"1", name: b"evil", "out/last": b"2"})
    with pytest.raises(ArtifactsNotSaved) as caught:
        artifacts.save(folder)
    assert HOSTILE[name] in caught.value.refused[name]
    assert str(caught.value).isprintable()
    assert caught.value.saved == [folder / "first", folder / "out/last"]
    assert list_files(tmp_path) == {"in/results/first": b"1", "in/results/out/last": b"2"}
    assert artifacts.open(name.removeprefix("/work/")).read() == b"evil"


def test_a_name_that_is_no_utf_8_is_refused() -> None:
    assert "control characters" in saving.find_name_fault("a\udcffb")


def test_names_of_other_scripts_are_saved(tmp_path: Path) -> None:
    names = {"\u56f3\u3000\u8868.png": b"1", "\u0928\u094d\u200d\u092f": b"2", "caf\u00e9 \u00a0x": b"3", "-rf": b"4"}
    leave(names).save(tmp_path)
    assert list_files(tmp_path) == names


def test_a_path_of_5000_characters_is_saved(tmp_path: Path) -> None:
    name = "/".join(["d" * 200] * 25)
    (saved,) = leave({name: b"deep"}).save(tmp_path)
    assert str(saved).endswith(name)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for part in name.split("/"):
        below = os.open(part, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    assert os.read(descriptor, 10) == b"deep"
    os.close(descriptor)


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_link_in_the_folder_is_followed(tmp_path: Path, *, overwrite: bool) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "results"
    outside.mkdir()
    folder.mkdir()
    (outside / "kept").write_bytes(b"kept")
    (folder / "dir").symlink_to(outside)
    (folder / "file").symlink_to(outside / "kept")
    (folder / "dangling").symlink_to(outside / "new")
    with pytest.raises(ArtifactsNotSaved) as caught:
        leave({"dir/kept": b"x", "file": b"x", "dangling": b"x"}).save(folder, overwrite=overwrite)
    assert list_files(outside) == {"kept": b"kept"}
    assert caught.value.refused.keys() == ({"dir/kept"} if overwrite else {"dir/kept", "file", "dangling"})
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_folder_that_is_swapped_for_a_link_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "results"
    outside.mkdir()
    artifacts = leave({"a/b/c": b"evil"})
    is_over = threading.Event()

    def swap() -> None:
        while not is_over.is_set():
            for step in (
                lambda: (folder / "a/b").rename(folder / "a/old"),
                lambda: (folder / "a/b").symlink_to(outside),
                (folder / "a/b").unlink,
                lambda: (folder / "a/old").rename(folder / "a/b"),
            ):
                try:
                    step()
                except OSError:
                    continue

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            try:
                artifacts.save(folder, overwrite=True)
            except (ArtifactsNotSaved, FileNotFoundError):
                continue
    finally:
        is_over.set()
        thread.join()
    assert list(outside.iterdir()) == []


def test_a_file_that_is_there_is_kept_unless_asked_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    (tmp_path / "d").mkdir()
    artifacts = leave({"a": b"new", "d": b"file", "e": b"e"})
    with pytest.raises(ArtifactsNotSaved) as caught:
        artifacts.save(tmp_path)
    assert "another file is there" in caught.value.refused["a"]
    assert list_files(tmp_path) == {"a": b"mine", "e": b"e"}
    with pytest.raises(ArtifactsNotSaved) as caught:
        artifacts.save(tmp_path, overwrite=True)
    assert caught.value.refused == {"d": "a folder is there under this name"}
    assert list_files(tmp_path) == {"a": b"new", "e": b"e"}


def test_a_save_may_be_repeated(tmp_path: Path) -> None:
    artifacts = leave({"a": b"1", "b/c": b"2"})
    first = artifacts.save(tmp_path)
    inodes = [path.stat().st_ino for path in first]
    assert artifacts.save(tmp_path) == first
    assert [path.stat().st_ino for path in first] == inodes


def test_two_artifacts_cannot_be_file_and_folder_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactsNotSaved) as caught:
        leave({"a": b"1", "a/b": b"2"}).save(tmp_path)
    assert len(caught.value.saved) == 1
    assert len(caught.value.refused) == 1


@pytest.mark.parametrize("damage", ["expired", "altered", "longer", "shorter"])
def test_an_artifact_that_is_missing_or_altered_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    fleet = new_fleet({"a": b"x" * 10, "b": b"kept"})
    artifacts = fleet.submit({"image": "x"}).artifacts
    sha256 = artifacts[0].sha256
    if damage == "expired":
        fleet.store.delete(sha256)
    else:
        real = fleet.store.get
        size = {"altered": 10, "longer": 11, "shorter": 9}[damage]
        monkeypatch.setattr(fleet.store, "get", lambda name: b"y" * size if name == sha256 else real(name))
    with pytest.raises(ArtifactsNotSaved) as caught:
        artifacts.save(tmp_path)
    assert caught.value.refused.keys() == {"a"}
    assert list_files(tmp_path) == {"b": b"kept"}
    with pytest.raises(FileMissing):
        artifacts.open("a")


def test_a_file_system_without_hard_links_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr("sandfleet.files.saving.os.link", refuse)
    artifacts = leave({"a": b"1"})
    artifacts.save(tmp_path)
    artifacts.save(tmp_path)
    assert list_files(tmp_path) == {"a": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_batch_saves_in_a_folder_for_each_job(tmp_path: Path) -> None:
    def handler(spec: SandboxSpec) -> WithArtifacts | SandboxResult:
        name = spec.labels["name"]
        return WithArtifacts(END, {"out.txt": name.encode(), "../x": b""}) if name != "none" else END

    fleet = FakeFleet(handler)
    jobs = fleet.submit_many([{"image": "x", "labels": {"name": name}} for name in ("a", "none", "b")], batch="b")
    with pytest.raises(ArtifactsNotSaved) as caught:
        fleet.batch("b").artifacts.save(tmp_path)
    assert list_files(tmp_path) == {f"{jobs[0].id}/out.txt": b"a", f"{jobs[2].id}/out.txt": b"b"}
    assert caught.value.refused.keys() == {f"{jobs[0].id}/../x", f"{jobs[2].id}/../x"}
    assert {path.name for path in tmp_path.iterdir()} == {jobs[0].id, jobs[2].id}


@pytest.mark.parametrize("job_id", ["../x", "/x", "a/b", ""])
def test_a_hostile_job_id_names_no_folder(tmp_path: Path, job_id: str) -> None:
    fleet = new_fleet({})
    found = (Artifact("a", 0, hashlib.sha256(b"").hexdigest(), "0644"),)
    fleet.upload(b"")
    with pytest.raises(ArtifactsNotSaved, match="id is not safe"):
        fleet.artifacts_of(Outcome.of(ErrorCode.OK, job_id, artifacts=found)).save(tmp_path / "r", by_job=True)
    assert list(tmp_path.iterdir()) == []
