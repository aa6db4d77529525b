"""`sandfleet-worker images prepare|unprepare|list|inspect|rm`; no sandbox is booted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from image_files import write_image
from sandfleet_config.errors import ImageInvalid
from sandfleet_worker.cli import main
from sandfleet_worker.commands import preparations
from sandfleet_worker.sandbox.prepared.preparation import Preparation, Tried
from sandfleet_worker.sandbox.prepared.registry import FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandfleet_config.settings import WorkerSettings
    from sandfleet_worker.sandbox.image.image import Image

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with two images; every preparation works but those that import `broken`."""
    monkeypatch.setenv("SANDFLEET_IMAGES__ROOT", str(tmp_path))
    write_image(tmp_path, "python-data", 1)
    write_image(tmp_path, "python", 2)

    def try_preparation(_: WorkerSettings, image: Image, preparation: Preparation) -> Tried:
        if "broken" in preparation.modules:
            raise ImageInvalid.of(f"{image.name} cannot be prepared as {preparation}: no")
        return Tried(0.5, 60 << 20)

    monkeypatch.setattr(preparations, "try_preparation", try_preparation)
    return tmp_path


@pytest.fixture
def run(root: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    assert root.is_dir()

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["images", *argv])
        assert isinstance(caught.value.code, int)
        return (caught.value.code, *capfd.readouterr())

    return call


def test_a_preparation_that_works_is_kept_and_shown(run: Run, root: Path) -> None:
    code, out, err = run("prepare", "python-data", "--name", "sci", "--python-import", "numpy, pandas,")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "python-data is prepared as sci (numpy, pandas): 0.50 s of imports, 60 MiB of memory",
        "jobs say `prepared: sci`, or: sandfleet run --image python-data --prepared sci",
    ]
    assert run("prepare", "python-data", "--name", "a", "--python-import", "x", "--python-import", "y.z")[0] == 0
    [one, two] = json.loads(run("inspect", "python-data")[1])["preparations"]
    assert (one["name"], one["modules"]) == ("a", ["x", "y.z"])
    assert (two["name"], two["modules"], two["seconds"]) == ("sci", ["numpy", "pandas"], 0.5)
    listed = {image["name"]: image["preparations"] for image in json.loads(run("list", "--json")[1])}
    assert listed == {"python": [], "python-data": [one, two]}
    assert "a, sci" in run("list")[1]
    assert (root / FILE).stat().st_mode & 0o777 == 0o600


def test_a_preparation_without_imports_is_the_interpreter(run: Run) -> None:
    assert run("prepare", "python", "--name", "py")[1].startswith("python is prepared as py (no imports): ")
    assert json.loads(run("inspect", "python")[1])["preparations"][0]["modules"] == []


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["python", "--name", "x", "--python-import", "broken"], 1,
         "IMAGE_INVALID: python cannot be prepared as x (broken): no"),
        (["nope", "--name", "x"], 1, "IMAGE_NOT_FOUND: no image nope here"),
        (["python", "--name", "off"], 1, "IMAGE_INVALID: 'off' is no name for a preparation"),
        (["python", "--name", "x", "--python-import", "os;evil"], 1, "IMAGE_INVALID: 'os;evil': no module's name"),
        (["python"], 2, "missing option '--name'"),
    ],
)  # fmt: skip
def test_what_cannot_be_prepared_is_refused_with_the_reason(
    run: Run, root: Path, argv: list[str], code: int, said: str
) -> None:
    found = run("prepare", *argv)
    assert (found[0], found[1]) == (code, "")
    assert found[2].startswith(f"error: {said}")
    assert not (root / FILE).exists()


def test_a_host_that_starts_no_job_so_says_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_PREPARED__START", "off")
    monkeypatch.setenv("SANDFLEET_WARM__SIZE", "0")
    out = run("prepare", "python", "--name", "py")[1].splitlines()
    assert out[2:] == [
        "SANDFLEET_PREPARED__START is off: no job of this host starts so",
        "SANDFLEET_WARM__SIZE is 0: this host keeps no spares, so no job starts so",
    ]


def test_unprepare_takes_it_away_and_names_what_there_is(run: Run) -> None:
    run("prepare", "python", "--name", "py")
    code, _, err = run("unprepare", "python", "--name", "pi")
    assert (code, err) == (1, "error: IMAGE_NOT_FOUND: python has no preparation pi here (it has: py)\n")
    assert run("unprepare", "python", "--name", "py")[:2] == (0, "python is not prepared as py any more\n")
    assert json.loads(run("inspect", "python")[1])["preparations"] == []


def test_preparations_go_with_the_last_name_of_their_image(run: Run, root: Path) -> None:
    run("prepare", "python", "--name", "py")
    run("prepare", "python-data", "--name", "sci")
    write_image(root, "again", 2)
    assert run("rm", "python")[1] == "removed python and 1 of its preparations\n"
    assert run("rm", "again")[1] == "removed again\n"
    assert [entry["name"] for entry in json.loads((root / FILE).read_text())["preparations"]] == ["sci"]


def test_preparations_stay_when_their_image_is_replaced(run: Run, root: Path) -> None:
    run("prepare", "python", "--name", "py")
    write_image(root, "python", 3)
    assert [entry["name"] for entry in json.loads(run("inspect", "python")[1])["preparations"]] == ["py"]


def test_those_of_the_settings_are_shown_and_stay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_PREPARED__IMPORTS", "python:web=json+http.client")
    assert json.loads(run("inspect", "python")[1])["preparations"][0]["modules"] == ["json", "http.client"]
    for argv in (["unprepare", "python", "--name", "web"], ["prepare", "python", "--name", "web"]):
        code, _, err = run(*argv)
        assert (code, "SANDFLEET_PREPARED__IMPORTS" in err) == (1, True)


def test_a_damaged_list_is_told_and_hides_no_image(run: Run, root: Path) -> None:
    (root / FILE).write_text("{")
    code, out, err = run("list")
    assert (code, "python-data" in out) == (0, True)
    assert err.startswith(f"no preparation is used: {root / FILE} is damaged: remove it")
    assert run("rm", "python")[0] == 0
