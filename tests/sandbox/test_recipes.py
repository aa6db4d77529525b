"""Images of recipes, built with the real tools: mmdebstrap, apt, uv, and run in a sandbox."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from imagetools import extract, new_layout, new_tree
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import ImageInvalid, ImageUnavailable
from sandfleet_config.settings import ImagesSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image.recipe.builder import LockChoice, RecipeBuilder, new_cache
from sandfleet_worker.sandbox.image.recipe.debs import fetch_debs
from sandfleet_worker.sandbox.image.recipe.lock import LockedDeb, read_lock
from sandfleet_worker.sandbox.image.recipe.pip_settings import UV_INDEX
from sandfleet_worker.sandbox.image.recipe.whole import join, read_recipe
from sandfleet_worker.sandbox.image.staging import staging_folder
from sandfleet_worker.sandbox.image.store import ImageStore, Limits
from sandfleet_worker.sandbox.image.tools import StagingFolder
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.runner import RunscRunner
from wheelfiles import GREETING, new_source_archive, new_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_config.settings import HostSettings
    from sandfleet_worker.sandbox.image.image import Image

HERE = f"python3.{sys.version_info.minor}"


@dataclass
class Bench:
    """A folder with a recipe, and a store of its own."""

    folder: Path
    settings: ImagesSettings
    said: list[str] = field(default_factory=list)

    def write(self, text: str, name: str = "recipe.toml") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def build(self, path: Path, name: str = "app", **choice: Any) -> Image:
        store = ImageStore(self.settings.root)
        builder = RecipeBuilder(store, self.settings, self.said.append)
        lock = LockChoice(path.with_suffix(".lock"), **choice)
        return builder.build(name, join(read_recipe(path), path.parent), lock, f"recipe:{path.name}")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    folder = tmp_path / "bench"
    folder.mkdir()
    bench = Bench(folder, ImagesSettings(root=tmp_path / "images"))
    yield bench
    staging = tmp_path / "images" / "staging"
    assert not staging.exists() or list(staging.iterdir()) == [], "a build left something half-made"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that pip's settings of this host name as its only index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in (*UV_INDEX, "UV_CONFIG_FILE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def new_python_layout(bench: Bench, *config: str) -> str:
    """Return a base that has a Python of the host's version, as registry images have it."""
    tree = new_tree(bench.folder / "tree")
    (tree / "usr/local/bin").mkdir(parents=True)
    (tree / "usr/local/lib" / HERE).mkdir(parents=True)
    (tree / "usr/local/bin" / HERE).write_text("never run on this host\n")
    return new_layout(bench.folder / "layout", tree, *config).replace(str(bench.folder), ".")


def test_debian_and_wheels_built_twice_from_clean_folders_are_one_digest_and_run(
    tmp_path: Path, index: Path, host: HostSettings
) -> None:
    new_wheel(index)
    digests = set()
    bench = Bench(tmp_path, ImagesSettings())
    for number in (1, 2):
        folder = tmp_path / f"clean-{number}"
        (folder / "app").mkdir(parents=True)
        (folder / "app/run.sh").write_text("#!/bin/bash\ngreeter && cat data.txt && id -un && echo $COLOUR\n")
        (folder / "app/run.sh").chmod(0o700)
        (folder / "app/data.txt").write_text("mine\n")
        bench = Bench(folder, ImagesSettings(root=folder / "images"))
        path = bench.write(
            'pip = ["greeter"]\nfiles = [{from = "app", to = "/app"}]\nenv = {COLOUR = "blue"}\n'
            'working_dir = "/app"\ncommand = ["./run.sh"]\nuser = "games"\n'
        )
        if number == 2:
            shutil.copy(tmp_path / "clean-1/recipe.lock", folder)
            digests.add(bench.build(path, must_fit=True).digest)
        else:
            digests.add(bench.build(path).digest)
        shutil.rmtree(folder / "images/cache")
    assert len(digests) == 1
    lock = read_lock(tmp_path / "clean-1/recipe.lock")
    assert lock is not None
    assert "libstdc++6" in {deb.name for deb in lock.apt}, "numpy's wheel, and many others, expect it"
    tree = extract(ImageStore(bench.settings.root).resolve("app"), tmp_path / "out")
    packages = next((tree / "usr/local/lib").glob("python3.*/dist-packages"))
    assert [path.name.partition(".")[0] for path in (packages / "greeter/__pycache__").iterdir()] == ["__init__"]
    assert not (tree / ".compiled").exists()
    assert not (tree / "etc/apt/sources.list").exists(), "it names a folder of the host"
    with RunscRunner(host.model_copy(update={"images": bench.settings})) as runner:
        limits = admit(SandboxSpec(image="app", command=(), timeout=30), runner.config)
        outcome = runner.execute(limits).to_outcome(job_id="test")
    assert outcome.code is ErrorCode.OK, outcome.stderr.text
    assert outcome.stdout.text == f"{GREETING}\nmine\ngames\nblue\n"


def test_a_recipe_on_an_image_layout_keeps_its_settings_and_adds_its_own(bench: Bench, index: Path) -> None:
    new_wheel(index, needs="helper")
    new_wheel(index, "helper")
    base = new_python_layout(bench, "--config.cmd", "hello", "--config.env", "A=1", "--config.env", "B=1")
    path = bench.write(f'base = "oci:{base.removeprefix("oci:")}"\npip = ["greeter"]\nenv = {{ B = "2", C = "3" }}\n')
    image = bench.build(path)
    assert (image.cmd, image.source) == (("hello",), "recipe:recipe.toml")
    assert {"A=1", "B=2", "C=3"} <= set(image.env)
    tree = extract(image, bench.folder / "out")
    packages = tree / f"usr/local/lib/{HERE}/site-packages"
    assert (tree / "usr/local/bin/greeter").read_text().startswith(f"#!/usr/local/bin/{HERE}\n")
    assert (tree / "usr/local/share/greeter/data.txt").read_text() == "data\n"
    record = (packages / "greeter-1.0.dist-info/RECORD").read_text()
    assert "../../../bin/greeter,,\n" in record
    assert (packages / "../../../bin/greeter").exists()
    assert "/bin/python" not in record
    assert list((packages / "helper/__pycache__").iterdir())
    lock = read_lock(path.with_suffix(".lock"))
    assert lock is not None
    assert [wheel.name for wheel in lock.pip] == ["greeter", "helper"]
    assert str(index) not in path.with_suffix(".lock").read_text(), "a lock names no host and no folder"


def test_a_package_without_a_wheel_is_refused_and_its_code_never_runs(bench: Bench, index: Path) -> None:
    canary = bench.folder / "canary"
    new_source_archive(index, "onlysource", "1.0", canary)
    path = bench.write(f'base = "{new_python_layout(bench)}"\npip = ["onlysource"]\n')
    with pytest.raises(ImageInvalid) as caught:
        bench.build(path)
    assert "no wheel that fits" in caught.value.message
    assert "onlysource" in caught.value.message
    assert not canary.exists()
    assert not path.with_suffix(".lock").exists()


def test_a_wheel_that_is_gone_or_was_altered_is_an_error_that_says_what_to_do(bench: Bench, index: Path) -> None:
    wheel = new_wheel(index)
    path = bench.write(f'base = "{new_python_layout(bench)}"\npip = ["greeter"]\n')
    first = bench.build(path).digest
    shutil.rmtree(bench.settings.root / "cache")
    new_wheel(index, text="another")
    with pytest.raises(ImageUnavailable, match="--update"):
        bench.build(path)
    wheel.unlink()
    with pytest.raises(ImageUnavailable, match="--update"):
        bench.build(path)
    new_wheel(index, text="another")
    assert bench.build(path, is_renewed=True).digest != first
    new_wheel(index)
    assert bench.build(path, is_renewed=True).digest == first


def test_a_changed_recipe_is_locked_anew_but_not_with_must_fit(bench: Bench, index: Path) -> None:
    new_wheel(index)
    new_wheel(index, "helper")
    base = new_python_layout(bench)
    path = bench.write(f'base = "{base}"\npip = ["greeter"]\n')
    with pytest.raises(ImageInvalid, match="there is no lock"):
        bench.build(path, must_fit=True)
    bench.build(path)
    bench.write(f'base = "{base}"\npip = ["greeter", "helper"]\n')
    with pytest.raises(ImageInvalid, match="the recipe was changed"):
        bench.build(path, must_fit=True)
    bench.build(path)
    assert "the recipe was changed since it was locked" in bench.said
    path.with_suffix(".lock").write_text("{}")
    with pytest.raises(ImageInvalid, match="cannot be read"):
        bench.build(path)


def test_builds_of_one_recipe_at_once_lock_it_once(bench: Bench, index: Path) -> None:
    new_wheel(index)
    path = bench.write(f'base = "{new_python_layout(bench)}"\npip = ["greeter"]\n')
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(bench.build(path).digest)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert len(set(digests)) == 1
    assert len([text for text in bench.said if text.startswith("locked ")]) == 1


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("docker://UPPER/python", "the base 'docker://UPPER/python'"),
        ("oci:nowhere:v1", "is no OCI image layout"),
        ("./other.toml", "cannot read the recipe"),
        ("nope", "there is no ready recipe 'nope', only bash, gcc"),
    ],
)
def test_a_base_that_cannot_be_had_is_refused(bench: Bench, base: str, said: str) -> None:
    path = bench.write(f'base = "{base}"\npip = ["greeter"]\n')
    with pytest.raises(ImageInvalid) as caught:
        bench.build(path)
    assert said in caught.value.message


def test_a_base_without_python_or_with_musl_gets_no_wheels(bench: Bench, index: Path) -> None:
    new_wheel(index)
    tree = new_tree(bench.folder / "plain")
    path = bench.write(f'base = "{new_layout(bench.folder / "one", tree)}"\npip = ["greeter"]\n')
    with pytest.raises(ImageInvalid, match="needs a base with Python 3"):
        bench.build(path)
    (tree / "lib").mkdir()
    (tree / "lib/ld-musl-x86_64.so.1").touch()
    path = bench.write(f'base = "{new_layout(bench.folder / "two", tree)}"\npip = ["greeter"]\n')
    with pytest.raises(ImageInvalid, match="musl"):
        bench.build(path)


def test_a_package_of_debian_that_is_gone_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        deb = LockedDeb(
            name="gone", version="1:2.0", architecture="all", path="pool/g/gone_2.0_all.deb", size=9, sha256="0" * 64
        )
        with staging_folder(bench.settings.root / "staging") as (folder, lock):
            staging = StagingFolder(folder, lock, Limits())
            mirror = f"http://127.0.0.1:{server.server_port}/"
            with pytest.raises(ImageUnavailable) as caught:
                fetch_debs([deb], mirror, staging, new_cache(bench.settings))
        assert "gone 1:2.0" in caught.value.message
        assert "--update" in caught.value.message
        server.shutdown()
        server.server_close()
        with staging_folder(bench.settings.root / "staging") as (folder, lock):
            staging = StagingFolder(folder, lock, Limits())
            with pytest.raises(ImageUnavailable, match="cannot fetch gone"):
                fetch_debs([deb], mirror, staging, new_cache(bench.settings))
    finally:
        server.shutdown()
        thread.join()


def test_files_never_leave_the_tree_and_bad_ones_are_told_together(bench: Bench) -> None:
    tree = new_tree(bench.folder / "hostile")
    outside = bench.folder / "outside"
    outside.mkdir()
    (tree / "app").symlink_to(outside)
    (tree / "up").symlink_to("../../../../../../../../tmp")
    (bench.folder / "mine.txt").write_text("mine")
    os.mkfifo(bench.folder / "pipe")
    base = new_layout(bench.folder / "layout", tree)
    path = bench.write(
        f'base = "{base}"\nfiles = [{{from="mine.txt", to="/app/x"}}, {{from="mine.txt", to="/up/y", mode="600"}}]\n'
    )
    unpacked = extract(bench.build(path), bench.folder / "out")
    assert not list(outside.iterdir())
    assert (unpacked / str(outside).lstrip("/") / "x").read_text() == "mine"
    assert (unpacked / "tmp/y").stat().st_mode & 0o777 == 0o600
    bench.write(f'base = "{base}"\nfiles = [{{from="none", to="/a"}}, {{from="missing", to="/b"}}]\n')
    with pytest.raises(ImageInvalid, match="2 faults") as caught:
        bench.build(path)
    assert "none is not in" in caught.value.message
    bench.write(f'base = "{base}"\nfiles = [{{from="pipe", to="/a"}}]\n')
    with pytest.raises(ImageInvalid, match="neither a file nor a folder"):
        bench.build(path)
