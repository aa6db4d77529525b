"""A preparation is tried once before a host lists it: one real spare, and a job in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from imagetools import extract
from leftovers import left_behind
from sandfleet_config.errors import ImageInvalid
from sandfleet_config.settings import HostSettings, PolicySettings
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.prepared.preparation import Preparation
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_worker.sandbox.prepared.preparation import Tried

AT_HOME = f"test-python-home-{os.getpid()}"


@pytest.fixture
def at_home(host: HostSettings, tmp_path: Path) -> Iterator[str]:
    """An image whose user has a HOME, with a module that writes there when it is imported."""
    store = ImageStore(host.images.root)
    tree = extract(store.resolve("python"), tmp_path / "tree")
    (tree / "home" / "user").mkdir(parents=True)
    (tree / "etc" / "passwd").write_text("nobody:x:65534:65534::/home/user:/bin/sh\n")
    module = "import os, pathlib\npathlib.Path(os.environ['HOME'], '.cache').mkdir()\n"
    (tree / "usr" / "lib" / "python3" / "dist-packages" / "leaves_cache.py").write_text(module)
    store.add(AT_HOME, f"rootfs:{tree}")
    yield AT_HOME
    store.remove(AT_HOME)


def prepare(host: HostSettings, *modules: str, image: str = "python") -> Tried:
    with RunscRunner(host) as runner:
        tried = runner.try_preparation(runner.images.resolve(image), Preparation("sci", modules))
    assert not left_behind(host), "the trial left something on the host"
    return tried


def test_a_preparation_that_works_says_what_it_takes(host: HostSettings) -> None:
    tried = prepare(host, "json", "email.message", "decimal")
    assert 0 < tried.seconds < 30
    assert 4 << 20 < tried.memory_bytes < 256 << 20


def test_the_interpreter_alone_can_be_prepared(host: HostSettings) -> None:
    assert prepare(host).seconds > 0


@pytest.mark.parametrize(
    ("modules", "image", "said"),
    [
        (
            ("json", "nosuch"),
            "python",
            "python cannot be prepared as sci (json, nosuch): import nosuch: ModuleNotFound",
        ),
        (("idlelib.idle_test.mock_idle.no",), "python", "python cannot be prepared as sci"),
        ((), "busybox", "busybox cannot be prepared as sci (no imports): the interpreter cannot be executed: No such"),
    ],
)
def test_a_preparation_that_fails_is_refused_with_the_reason(
    host: HostSettings, modules: tuple[str, ...], image: str, said: str
) -> None:
    with pytest.raises(ImageInvalid) as caught:
        prepare(host, *modules, image=image)
    assert caught.value.message.startswith(said)
    assert not left_behind(host)


def test_a_module_that_leaves_a_file_in_home_is_refused(host: HostSettings, at_home: str) -> None:
    """A job gets a HOME of its own, and would find it gone."""
    with pytest.raises(ImageInvalid, match=r"an import left a file: /home/user/\.cache$"):
        prepare(host, "leaves_cache", image=at_home)
    assert not left_behind(host)
    assert prepare(host, "json", image=at_home).seconds > 0


def test_a_preparation_that_leaves_no_memory_for_jobs_is_refused(host: HostSettings) -> None:
    small = host.model_copy(update={"policy": PolicySettings(memory_bytes=48 << 20)})
    with pytest.raises(ImageInvalid, match=r"jobs would need .* of memory \(SANDFLEET_POLICY__MEMORY_BYTES\)"):
        prepare(small)
    assert not left_behind(small)
