"""A digest that a job names does not bypass the names that a host's policy allows."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from imagetools import new_tree
from sandfleet_config.errors import SecurityViolation
from sandfleet_config.files import DatasetSpec
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.sandbox.image.datasets import DatasetStore
from sandfleet_worker.sandbox.image.finder import ImageFinder
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.start_hooks import NoHooks

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_worker.sandbox.start_hooks import StartHooks

REFUSED = r"this host has it as secret, which its policy does not allow \(SANDFLEET_POLICY__"


def go_on() -> None:
    """Raise nothing."""


class Pinned(NoHooks):
    """The hooks of a job whose batch runs `digest`."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def find_digest(self, name: str) -> str:  # noqa: ARG002  of each name
        return self._digest


@pytest.fixture
def digests(store: ImageStore, tmp_path: Path) -> dict[str, str]:
    """Add three images: `first` and `second` were called `app` in turn, `secret` is called so."""
    names = {"first": "app", "second": "app", "secret": "secret"}
    return {text: store.add(name, f"rootfs:{new_tree(tmp_path / text, text)}").digest for text, name in names.items()}


def find(store: ImageStore, reference: str, *allowed: str, hooks: StartHooks | None = None) -> str:
    """Return the digest that a job gets under a policy of `allowed`."""
    finder = ImageFinder(store, ImagesSettings(root=store.root), allowed=allowed)
    with finder.hold(reference, hooks or NoHooks(), go_on) as image:
        return image.digest


def test_a_digest_of_an_image_that_the_policy_does_not_allow_is_refused(
    store: ImageStore, digests: dict[str, str]
) -> None:
    secret = digests["secret"]
    for hooks, reference in ((None, f"app@{secret}"), (Pinned(secret), "app")):
        with pytest.raises(SecurityViolation, match=f"{REFUSED}IMAGES"):
            find(store, reference, "app", "team/*", hooks=hooks)
        for allowed in (("*",), ("app", "sec*"), ("app", secret)):
            assert find(store, reference, *allowed, hooks=hooks) == secret


def test_a_digest_that_the_name_had_earlier_is_allowed(store: ImageStore, digests: dict[str, str]) -> None:
    for text in ("first", "second"):
        assert find(store, f"app@{digests[text]}", "app") == digests[text]
        assert find(store, "app", "app", hooks=Pinned(digests[text])) == digests[text]
    assert find(store, "app", "app") == digests["second"]
    assert store.catalog.list_names(digests["first"]) == {"app"}


def test_a_digest_of_a_dataset_that_the_policy_does_not_allow_is_refused(tmp_path: Path) -> None:
    added = DatasetStore(tmp_path / "store")
    digest = {}
    for name in ("public", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hello").write_text(name)
        digest[name] = added.add(name, tmp_path / name).digest.removeprefix("sha256:")

    def hold(allowed: tuple[str, ...], **wanted: Any) -> None:
        with ExitStack() as stack:
            store = DatasetStore(tmp_path / "store", allowed=allowed)
            stack.enter_context(store.hold([DatasetSpec(**wanted)], NoHooks(), go_on))

    hold(("public",), name="public", sha256=digest["public"])
    hold(("public", "sha256:*"), sha256=digest["secret"], path="/data/x")
    hold(("*",), name="public", sha256=digest["secret"])
    with pytest.raises(SecurityViolation, match=f"{REFUSED}DATASETS"):
        hold(("public",), name="public", sha256=digest["secret"])
