"""Pulls without a fleet: what is kept, what a registry may not do, and the commands."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from imagetools import new_layout, new_tree
from layerings import member, pack
from lying_registry import MANIFEST, LyingRegistry
from registries import Registry, new_registry, run_registry, write_auth
from sandfleet_config.errors import (
    Cancelled,
    HostResources,
    ImageInvalid,
    ImageNotFound,
    ImageUnavailable,
    SecurityViolation,
)
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.cli import main
from sandfleet_worker.sandbox.image.cache import USED
from sandfleet_worker.sandbox.image.finder import ImageFinder, PullForbidden
from sandfleet_worker.sandbox.image.registry import reader
from sandfleet_worker.sandbox.image.registry.failures import NotInRegistry
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.start_hooks import NoHooks
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_worker.sandbox.image.image import Image

MIB = 1 << 20


def go_on() -> None:
    """Raise nothing."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[LyingRegistry]:
    liar = LyingRegistry(tmp_path / "liar")
    yield liar
    liar.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FIRST_PAUSE_SECONDS", 0.05)


class Host:
    """A host's store and finder; `pull` returns the image as a job would find it."""

    def __init__(self, root: Path, registry: Registry | LyingRegistry, **settings: Any) -> None:
        self.store, self.registry = ImageStore(root), registry
        access: dict[str, Any] = {"auth_file": registry.auth_file} if isinstance(registry, Registry) else {}
        fields: dict[str, Any] = (
            {"root": root, "pull_from": (registry.name,), "ca_dir": registry.ca_dir} | access | settings
        )
        self.settings = ImagesSettings(**fields)
        self.finder = ImageFinder(self.store, self.settings)

    def pull(self, path: str, check: Any = go_on) -> Image:
        with self.finder.hold(f"docker://{self.registry.name}/{path}", NoHooks(), check) as image:
            return image

    @property
    def digests(self) -> set[str]:
        return {image.digest for image in self.store.list()}


def push(registry: Registry, folder: Path, name: str, *options: str, size: int = 0) -> str:
    """Push an image of its own, with `size` random bytes in it."""
    tree = new_tree(folder / name.replace("/", "-"), name)
    (tree / "noise").write_bytes(os.urandom(size or 1))
    return registry.push(new_layout(folder / f"{name.replace('/', '-')}-layout", tree), f"{name}:v1", *options)


def test_zstd_layers_are_unpacked_and_the_sources_digest_is_kept(registry: Registry, tmp_path: Path) -> None:
    digest = push(registry, tmp_path, "zstd/app", "--dest-compress", "--dest-compress-format=zstd")
    raw = registry._ask(f"zstd/app/manifests/{digest}")[0]
    assert b"tar+zstd" in raw
    assert Host(tmp_path / "store", registry).pull("zstd/app:v1").digest == digest


def test_a_tag_is_resolved_once_in_its_ttl(registry: Registry, tmp_path: Path) -> None:
    first = push(registry, tmp_path, "ttl/app")
    host = Host(tmp_path / "store", registry, tag_ttl=3600)
    assert host.pull("ttl/app:v1").digest == first
    second = push(registry, tmp_path / "second", "ttl/app")
    assert host.pull("ttl/app:v1").digest == first
    eager = Host(tmp_path / "store", registry, tag_ttl=0)
    assert eager.pull("ttl/app:v1").digest == second
    assert host.pull("ttl/app:v1").digest == second, "what was asked last counts"
    assert host.pull(f"ttl/app@{first}").digest == first
    offline = Host(tmp_path / "store", registry, tag_ttl=0, pull_from=())
    assert offline.pull("ttl/app:v1").digest == second, "a host that may not pull uses what it has"
    with pytest.raises(PullForbidden, match="SANDFLEET_IMAGES__PULL_FROM"):
        offline.pull("ttl/app:v2")


def test_a_stale_tag_is_not_used_while_its_registry_is_down(registry: Registry, tmp_path: Path) -> None:
    push(registry, tmp_path, "down/app")
    own = new_registry(tmp_path / "own")
    own.start()
    digest = push(own, tmp_path / "own", "down/app")
    assert Host(tmp_path / "store", own).pull("down/app:v1").digest == digest
    own.kill()
    assert Host(tmp_path / "store", own).pull("down/app:v1").digest == digest
    with pytest.raises(ImageUnavailable, match="check that the registry runs"):
        Host(tmp_path / "store", own, tag_ttl=0).pull("down/app:v1")
    assert Host(tmp_path / "store", own, tag_ttl=0).pull(f"down/app@{digest}").digest == digest


def test_many_threads_and_processes_pull_once(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(registry, tmp_path, "once/app", size=8 * MIB)
    hosts = [Host(tmp_path / "store", registry, tag_ttl=0) for _ in range(2)]
    threads = [threading.Thread(target=host.pull, args=("once/app:v1",)) for host in hosts * 3]
    with caplog.at_level("INFO"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [record.message for record in caplog.records if "was pulled" in record.message] == [
        caplog.records[0].message
    ]


def test_the_least_recently_used_image_goes_first(registry: Registry, tmp_path: Path) -> None:
    names = [f"lru/app-{number}" for number in range(4)]
    digests = [push(registry, tmp_path, name, size=MIB) for name in names]
    host = Host(tmp_path / "store", registry, max_bytes=3 * MIB + MIB // 2)
    by_hand = host.store.add("mine", f"rootfs:{new_tree(tmp_path / 'mine')}").digest
    images = [host.pull(f"{name}:v1") for name in names[:3]]
    for age, image in ((300, images[1]), (200, images[0]), (100, images[2])):
        used = image.erofs_path.with_name(USED)
        os.utime(used, (time.time() - age, time.time() - age))
    with host.finder.hold(digests[1], NoHooks(), go_on):  # in use: the next one goes
        host.pull(f"{names[3]}:v1")
    assert host.digests == {by_hand, digests[1], digests[2], digests[3]}
    with pytest.raises(ImageNotFound):
        host.store.resolve(f"docker://{registry.name}/{names[0]}:v1")
    again = host.pull(f"{names[0]}:v1")
    assert again.digest == digests[0]
    assert by_hand in host.digests


def test_what_was_pulled_by_hand_or_has_a_local_name_stays(registry: Registry, tmp_path: Path) -> None:
    kept, named, other = (push(registry, tmp_path, f"hand/{name}", size=MIB) for name in ("kept", "named", "other"))
    host = Host(tmp_path / "store", registry)
    assert host.finder.pull(f"docker://{registry.name}/hand/kept:v1").digest == kept
    host.store.name_image("mine", host.pull("hand/named:v1"))
    host.pull("hand/other:v1")
    small = Host(tmp_path / "store", registry, max_bytes=MIB // 2)
    assert small.finder.cache.shrink() == [other]
    assert host.digests == {kept, named}


def test_a_disk_above_its_mark_is_freed_of_pulled_images(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [push(registry, tmp_path, f"disk/app-{number}") for number in range(2)]
    host = Host(tmp_path / "store", registry, disk_high_percent=90)
    for number in range(2):
        host.pull(f"disk/app-{number}:v1")
    monkeypatch.setattr(host.finder.cache, "_read_free", lambda: (20 * MIB, 100 * MIB))
    assert host.finder.cache.shrink() == []
    monkeypatch.setattr(host.finder.cache, "_read_free", lambda: (5 * MIB, 100 * MIB))
    assert sorted(host.finder.cache.shrink()) == sorted(digests)
    monkeypatch.setattr(host.finder.cache, "_read_free", lambda: (0, 100 * MIB))
    with pytest.raises(HostResources, match="no room to pull"):
        host.pull("disk/app-0:v1")


def test_an_image_larger_than_the_cache_is_refused(registry: Registry, tmp_path: Path) -> None:
    push(registry, tmp_path, "large/app", size=2 * MIB)
    with pytest.raises(ImageInvalid, match="SANDFLEET_IMAGES__MAX_BYTES"):
        Host(tmp_path / "store", registry, max_bytes=MIB).pull("large/app:v1")


def test_an_image_that_unpacks_to_more_than_the_cache_is_refused_and_throws_none_out(
    registry: Registry, tmp_path: Path
) -> None:
    host = Host(tmp_path / "store", registry, max_bytes=2 * MIB)
    kept = push(registry, tmp_path, "cache/small")
    host.pull("cache/small:v1")
    tree = new_tree(tmp_path / "cache-bloated", "bloated")
    (tree / "zeros").write_bytes(bytes(16 * MIB))  # its layer is small
    registry.push(new_layout(tmp_path / "bloated-layout", tree), "cache/bloated:v1")
    with pytest.raises(
        ImageInvalid, match=r"16 MiB\), this host keeps 2 MiB of pulled images \(SANDFLEET_IMAGES__MAX_BYTES"
    ):
        host.pull("cache/bloated:v1")
    assert host.digests == {kept}
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_a_pull_ends_when_its_job_does(liar: LyingRegistry, tmp_path: Path) -> None:
    """The layer comes only once the pull has ended: a fast one could be whole before the next check."""
    layer, has_ended = gzip.compress(pack(member("file"))), threading.Event()
    liar.serve_image("team/app", layer)
    path = f"/team/app/blobs/sha256:{hashlib.sha256(layer).hexdigest()}"
    serve = liar.answers[path]
    liar.answers[path] = lambda: serve() if has_ended.wait(60) else (500, b"{}", {})

    def end_while_copying() -> None:
        if path in "".join(liar.asked):
            raise Cancelled.of("cancelled")

    try:
        with pytest.raises(Cancelled):
            Host(tmp_path / "store", liar).pull("team/app:v1", end_while_copying)
    finally:
        has_ended.set()
    assert list((tmp_path / "store" / "staging").iterdir()) == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_password_file_that_others_may_read_is_refused(registry: Registry, tmp_path: Path, mode: int) -> None:
    auth = write_auth(tmp_path / "auth.json", registry.name)
    auth.chmod(mode)
    with pytest.raises(ImageUnavailable, match="chmod 600"):
        Host(tmp_path / "store", registry, auth_file=auth).pull("any/app:v1")


def test_a_missing_password_file_is_told(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ImageUnavailable, match="skopeo login --authfile"):
        Host(tmp_path / "store", registry, auth_file=tmp_path / "none.json").pull("any/app:v1")


def test_a_registry_of_an_unknown_ca_is_not_trusted(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ImageUnavailable, match="SANDFLEET_IMAGES__CA_DIR"):
        Host(tmp_path / "store", registry, ca_dir=None).pull("any/app:v1")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_refusal_is_tried_again(liar: LyingRegistry, tmp_path: Path, status: int) -> None:
    liar.serve_image("team/app", gzip.compress(pack(member("file"))))
    serve, refused = liar.answers["/team/app/manifests/v1"], list[float]()

    def refuse_twice() -> Any:
        refused.append(time.monotonic())
        return serve() if len(refused) > 2 else (status, b"{}", {"Retry-After": "0"})

    liar.answers["/team/app/manifests/v1"] = refuse_twice
    assert Host(tmp_path / "store", liar).pull("team/app:v1").size_bytes
    assert len(refused) >= 3


def test_a_lasting_refusal_is_given_up(liar: LyingRegistry, tmp_path: Path) -> None:
    liar.answers["/team/app/manifests/v1"] = lambda: (503, b"{}", {})
    with pytest.raises(ImageUnavailable):
        Host(tmp_path / "store", liar).pull("team/app:v1")
    assert 3 <= len([path for path in liar.asked if path.endswith("v1")]) <= 20


def test_who_waited_for_a_pull_that_failed_does_not_try_for_himself(liar: LyingRegistry, tmp_path: Path) -> None:
    def refuse() -> Any:
        time.sleep(0.3)
        return 404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}', {}

    liar.answers["/team/app/manifests/v1"] = refuse
    host, ends = Host(tmp_path / "store", liar), list[str]()

    def pull() -> None:
        with pytest.raises(NotInRegistry) as error:
            host.pull("team/app:v1")
        ends.append(error.value.message)

    threads = [threading.Thread(target=pull) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 6
    assert len([path for path in liar.asked if path.endswith("v1")]) == 1


@pytest.mark.timeout(60)
def test_a_manifest_of_100_mb_is_refused(liar: LyingRegistry, tmp_path: Path) -> None:
    body = b'{"schemaVersion": 2, "long": "' + b"x" * 100 * 10**6 + b'"}'
    liar.answers["/team/app/manifests/v1"] = lambda: (200, body, {"Content-Type": MANIFEST})
    with pytest.raises(ImageInvalid, match="exceeded maximum allowed size"):
        Host(tmp_path / "store", liar).pull("team/app:v1")


def test_another_manifest_than_the_digest_says_is_refused(liar: LyingRegistry, tmp_path: Path) -> None:
    raw = liar.serve_image("team/app", gzip.compress(pack(member("file"))))
    wanted = f"sha256:{'0' * 64}"
    liar.answers[f"/team/app/manifests/{wanted}"] = lambda: (200, raw, {"Content-Type": MANIFEST})
    host = Host(tmp_path / "store", liar)
    with pytest.raises(ImageInvalid):
        host.pull(f"team/app@{wanted}")
    assert host.store.list() == []


def test_an_altered_layer_is_refused(liar: LyingRegistry, tmp_path: Path) -> None:
    raw = liar.serve_image("team/app", gzip.compress(pack(member("file"))))
    layer = json.loads(raw)["layers"][0]["digest"]
    other = gzip.compress(pack(member("evil")))
    liar.answers[f"/team/app/blobs/{layer}"] = lambda: (200, other, {})
    host = Host(tmp_path / "store", liar)
    with pytest.raises(ImageInvalid):
        host.pull("team/app:v1")
    assert host.store.list() == []
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_an_unknown_repository_is_not_found(liar: LyingRegistry, tmp_path: Path) -> None:
    unknown = json.dumps({"errors": [{"code": "NAME_UNKNOWN", "message": "repository name not known to registry"}]})
    liar.answers["/none/manifests/v1"] = lambda: (404, unknown.encode(), {"Content-Type": "application/json"})
    with pytest.raises(NotInRegistry):
        Host(tmp_path / "store", liar).pull("none:v1")


def new_env(registry: Registry, tmp_path: Path) -> dict[str, str]:
    return {
        "SANDFLEET_IMAGES__ROOT": str(tmp_path / "store"),
        "SANDFLEET_IMAGES__AUTH_FILE": str(registry.auth_file),
        "SANDFLEET_IMAGES__CA_DIR": str(registry.ca_dir),
    }


def test_the_commands_pull_list_inspect_verify_and_remove(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = push(registry, tmp_path, "cli/app")
    name = f"docker://{registry.name}/cli/app:v1"
    for key, value in new_env(registry, tmp_path).items():
        monkeypatch.setenv(key, value)

    def images(*argv: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["images", *argv])
        out, err = capsys.readouterr()
        assert ended.value.code == status, err
        return out + err

    assert images("pull", name) == f"{name} {digest}\n"
    assert json.loads(images("inspect", name))["digest"] == digest
    assert [(found["name"], found["is_evictable"]) for found in json.loads(images("list", "--json"))] == [(name, False)]
    assert "always" in images("list")
    assert images("verify") == "1 image is as it was packed\n"
    (tmp_path / "store" / "staging" / "add-left").mkdir()
    assert images("gc", "--all") == "0 images removed\n"
    assert list((tmp_path / "store" / "staging").iterdir()) == []
    assert "write docker://python" in images("pull", "python", status=1)
    assert "check the name, the tag and the digest" in images("pull", f"docker://{registry.name}/cli/app:v9", status=1)
    packed = next((tmp_path / "store" / "blobs").glob("*/image.erofs"))
    packed.chmod(0o644)
    packed.write_bytes(packed.read_bytes()[:-4096] + b"\1" * 4096)
    assert "its file was changed on disk" in images("verify", name, status=1)
    assert images("rm", name) == f"removed {name}\n"
    assert "there are no images here" in images("list")


def test_a_pull_that_was_killed_is_cleared_by_the_next(registry: Registry, tmp_path: Path) -> None:
    push(registry, tmp_path, "victim/app", size=24 * MIB)
    program = (
        "import sys; from sandfleet_worker.cli import main; "
        f"main(['images', 'pull', 'docker://{registry.name}/victim/app:v1'])"
    )
    env = os.environ | new_env(registry, tmp_path)
    staging = tmp_path / "store" / "staging"
    with subprocess.Popen([sys.executable, "-c", program], env=env) as process:
        wait_until(lambda: list(staging.glob("add-*/layout-pulled")), 20, "it copies")
        process.kill()
    assert list(staging.iterdir()), "it was killed in the middle"
    host = Host(tmp_path / "store", registry)

    def is_cleared() -> bool:
        host.store.sweep()
        return not list(staging.iterdir())

    wait_until(is_cleared, 10, "its tools are dead, and the sweep clears")
    assert host.pull("victim/app:v1").size_bytes


def test_a_digest_is_allowed_by_the_repository_that_it_came_from(tmp_path: Path, registry: Registry) -> None:
    """A policy narrower than ``*`` is not bypassed by the name of an allowed repository."""
    digest = push(registry, tmp_path, "closed/app")
    host = Host(tmp_path / "store", registry, pull_from=(f"{registry.name}/*",))
    assert host.pull("closed/app:v1").digest == digest

    def find(path: str, *allowed: str) -> str:
        finder = ImageFinder(
            host.store, host.settings, allowed=[f"docker://{registry.name}/{name}" for name in allowed]
        )
        with finder.hold(f"docker://{registry.name}/{path}@{digest}", NoHooks(), go_on) as image:
            return image.digest

    with pytest.raises(SecurityViolation, match=f"docker://{registry.name}/closed/app:v1"):
        find("open/app", "open/*")
    assert find("closed/app", "open/*", "closed/app@*") == digest
    assert find("open/app", "open/*", "closed/*") == digest
