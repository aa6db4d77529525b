"""The preparations of a host: which one a job gets, and the file that keeps them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError
from rows import each_row
from sandfleet_config.errors import HostResources, ImageInvalid, ImageNotFound
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_worker.sandbox.prepared.preparation import BARE, Preparation
from sandfleet_worker.sandbox.prepared.registry import FILE, Preparations, Registered

DIGEST = "sha256:" + "0a" * 32
SCI = Registered(image="python-data", name="sci", modules=("numpy", "pandas"), digest=DIGEST)


def new_registry(root: Path, **settings: object) -> Preparations:
    return Preparations(root, PreparedSettings.model_validate(settings))


def find(registry: Preparations, image: str, wanted: str | None, digest: str = DIGEST) -> tuple[str, ...] | None:
    """Return the modules of the preparation for a job."""
    found = registry.find(image, digest, wanted)
    assert found is None or found.name in {wanted, ""}
    return None if found is None else found.modules


def test_a_job_gets_the_preparation_that_it_names(tmp_path: Path) -> None:
    registry = new_registry(tmp_path)
    registry.add(SCI)
    assert find(registry, "python-data", "sci") == SCI.modules
    assert find(registry, "python-data", "other") is None
    assert find(registry, "python", "sci") is None
    assert find(registry, f"python-data@{DIGEST}", "sci") == SCI.modules


@pytest.mark.parametrize(
    ("start", "unnamed", "named"),
    [("off", None, None), ("named", None, SCI.modules), ("python", BARE.modules, SCI.modules)],
)
def test_the_settings_say_which_jobs_are_prepared(
    tmp_path: Path, start: str, unnamed: tuple[str, ...] | None, named: tuple[str, ...] | None
) -> None:
    registry = new_registry(tmp_path, start=start)
    registry.add(SCI)
    assert find(registry, "python-data", None) == unnamed
    assert find(registry, "python-data", "sci") == named
    assert registry.find("python-data", DIGEST, "off") is None


def test_an_image_without_a_name_is_found_by_its_digest(tmp_path: Path) -> None:
    registry = new_registry(tmp_path)
    registry.add(SCI.model_copy(update={"image": DIGEST}))
    assert find(registry, DIGEST, "sci") == SCI.modules
    assert find(registry, "python-data", "sci") == SCI.modules


def test_another_process_sees_a_change_at_once(tmp_path: Path) -> None:
    writer, reader = new_registry(tmp_path), new_registry(tmp_path)
    assert reader.find("python-data", DIGEST, "sci") is None
    writer.add(SCI)
    assert find(reader, "python-data", "sci") == SCI.modules
    writer.add(SCI.model_copy(update={"modules": ("numpy",)}))
    assert find(reader, "python-data", "sci") == ("numpy",)
    writer.remove("python-data", "sci")
    assert reader.find("python-data", DIGEST, "sci") is None


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    registry = new_registry(tmp_path)
    registry.add(SCI)
    path = tmp_path / FILE
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    assert registry.find("python-data", DIGEST, "sci") is None
    with pytest.raises(ImageInvalid, match="others may write it"):
        registry.list_all()


@each_row(
    "text",
    [
        "{",
        "[]",
        json.dumps({"format": 2, "preparations": []}),
        json.dumps({"format": 1, "preparations": [{"image": "x", "name": "Sci"}]}),
        json.dumps({"format": 1, "preparations": [{"image": "x", "name": "sci", "modules": ["os; import sys"]}]}),
    ],
)
def test_a_file_that_cannot_be_used_is_told_and_prepares_nothing(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    registry = new_registry(tmp_path)
    (tmp_path / FILE).unlink(missing_ok=True)
    registry.add(SCI)
    (tmp_path / FILE).write_text(text)
    assert registry.find("python-data", DIGEST, "sci") is None
    assert registry.find("python-data", DIGEST, "sci") is None
    assert [record.action for record in caplog.records if record.levelname == "WARNING"] == ["preparations_unusable"]  # type: ignore[attr-defined]
    with pytest.raises(ImageInvalid):
        registry.list_all()


@each_row("name", ["", "off", "Sci", "-sci", "a b", "x" * 65, "sci/x", "sci\n"])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageInvalid, match="no name for a preparation"):
        new_registry(tmp_path).add(SCI.model_copy(update={"name": name}))
    assert not (tmp_path / FILE).exists()


@each_row("module", ["", "1x", "a-b", "a..b", ".a", "a.", "os;x", "os\nx", "x" * 201, "ä"])
def test_a_bad_module_is_refused(tmp_path: Path, module: str) -> None:
    with pytest.raises(ImageInvalid, match="no module's name"):
        new_registry(tmp_path).add(SCI.model_copy(update={"modules": ("numpy", module)}))


def test_too_many_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="imports 64 at most"):
        new_registry(tmp_path).add(SCI.model_copy(update={"modules": tuple(f"m{i}" for i in range(65))}))


def test_removing_what_is_not_there_names_what_is(tmp_path: Path) -> None:
    registry = new_registry(tmp_path)
    registry.add(SCI)
    with pytest.raises(ImageNotFound, match=r"python-data has no preparation web here \(it has: sci\)"):
        registry.remove("python-data", "web")


def test_preparations_go_with_their_image(tmp_path: Path) -> None:
    registry = new_registry(tmp_path)
    registry.add(SCI)
    registry.add(SCI.model_copy(update={"image": "python"}))
    assert registry.forget({"python-data", DIGEST}) == 1
    assert [entry.image for entry in registry.list_all()] == ["python"]


def test_settings_name_preparations_too(tmp_path: Path) -> None:
    imports = "python-data:sci=numpy, docker://python:3.13:web=json+http.client,python:plain="
    registry = new_registry(tmp_path, imports=imports)
    registry.add(SCI)
    assert registry.find("python-data", DIGEST, "sci") == Preparation("sci", ("numpy",))
    name = "docker://docker.io/library/python:3.13"
    assert registry.find(name, DIGEST, "web") == Preparation("web", ("json", "http.client"))
    assert registry.find("python", DIGEST, "plain") == Preparation("plain", ())
    assert [(entry.image, entry.name) for entry in registry.list_all()] == [
        (name, "web"),
        ("python", "plain"),
        ("python-data", "sci"),
    ]
    with pytest.raises(ImageInvalid, match="SANDFLEET_PREPARED__IMPORTS"):
        registry.remove("python", "plain")


@each_row(
    "imports", ["sci=numpy", "python:Sci=numpy", "python:off=numpy", "python:sci", "python:sci=a b", "p:a=x,p:a=y"]
)
def test_wrong_settings_are_refused(imports: str) -> None:
    with pytest.raises(ValidationError, match="imports"):
        PreparedSettings.model_validate({"imports": imports})


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = new_registry(tmp_path)
    registry.add(SCI)
    before = (tmp_path / FILE).read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(HostResources, match="no space left"):
            registry.add(SCI.model_copy(update={"name": "two"}))
    assert (tmp_path / FILE).read_bytes() == before
    assert registry.find("python-data", DIGEST, "two") is None


def test_a_list_that_cannot_be_read_prepares_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).mkdir(mode=0o700)
    assert new_registry(tmp_path).find("python-data", DIGEST, "sci") is None
    assert f"{tmp_path / FILE}: Is a directory: mend it" in caplog.text


def test_to_prepare_it_again_makes_another_one_of_it(tmp_path: Path) -> None:
    """So its failures are forgotten, and spares of before go."""
    registry = new_registry(tmp_path)
    registry.add(SCI)
    first = registry.find("python-data", DIGEST, "sci")
    assert first is not None
    assert first == new_registry(tmp_path).find("python-data", DIGEST, "sci")
    registry.add(SCI)
    second = registry.find("python-data", DIGEST, "sci")
    assert second != first
    assert str(second) == str(first) == "sci (numpy, pandas)"


def test_the_preparations_of_an_image_are_those_of_its_name_and_its_digest(tmp_path: Path) -> None:
    registry = new_registry(tmp_path, imports=("python:web=json",))
    for image, name in (("python", "sci"), (DIGEST, "sci"), (DIGEST, "by-digest"), ("other", "x")):
        registry.add(SCI.model_copy(update={"image": image, "name": name}))
    found = registry.list_of("python", DIGEST)
    assert [one.name for one in found] == ["by-digest", "sci", "web"]
    assert found[1] == registry.find("python", DIGEST, "sci")
    assert registry.list_of("nosuch", "sha256:1") == []
