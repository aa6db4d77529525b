"""Recipes on an image of a real registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from imagetools import extract, new_layout, new_tree
from registries import Registry, run_registry
from sandfleet_config.errors import ImageInvalid, ImageNotFound, ImageUnavailable
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.sandbox.image.recipe.builder import LockChoice, RecipeBuilder
from sandfleet_worker.sandbox.image.recipe.lock import read_lock
from sandfleet_worker.sandbox.image.recipe.whole import join, read_recipe
from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_worker.sandbox.image.image import Image


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with run_registry(tmp_path / "registry") as registry:
        yield registry


def build(folder: Path, registry: Registry, *, is_renewed: bool = False, has_password: bool = True) -> Image:
    settings = ImagesSettings(
        root=folder / "images", ca_dir=registry.ca_dir, auth_file=registry.auth_file if has_password else None
    )
    builder = RecipeBuilder(ImageStore(settings.root), settings)
    path = folder / "recipe.toml"
    choice = LockChoice(path.with_suffix(".lock"), is_renewed=is_renewed)
    return builder.build("app", join(read_recipe(path), folder), choice, "recipe:recipe.toml")


def test_a_recipe_keeps_the_digest_that_its_base_had_when_it_was_locked(registry: Registry, tmp_path: Path) -> None:
    first = registry.push(new_layout(tmp_path / "one", new_tree(tmp_path / "a", "first")), "team/base:v1")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "recipe.toml").write_text(
        f'base = "docker://{registry.name}/team/base:v1"\nfiles = [{{from = "mine.txt", to = "/mine"}}]\n'
    )
    image = build(tmp_path, registry)
    lock = read_lock(tmp_path / "recipe.lock")
    assert lock is not None
    assert lock.base == first

    registry.push(new_layout(tmp_path / "two", new_tree(tmp_path / "b", "second")), "team/base:v1")
    assert build(tmp_path, registry).digest == image.digest, "the tag has moved, the lock has not"
    text = (tmp_path / "recipe.lock").read_text()
    for base, why in (("", "lock it anew with --update"), ("latest", "field base"), ("sha256:x", "field base")):
        (tmp_path / "recipe.lock").write_text(text.replace(first, base))
        with pytest.raises(ImageInvalid, match=why):
            build(tmp_path, registry)
    renewed = build(tmp_path, registry, is_renewed=True)
    assert renewed.digest != image.digest
    tree = extract(renewed, tmp_path / "out")
    assert (tree / "mine").read_text() == "mine"


def test_a_base_that_the_registry_does_not_have_or_does_not_give_is_named(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f'base = "docker://{registry.name}/none:v1"\n')
    with pytest.raises(ImageNotFound, match="none:v1"):
        build(tmp_path, registry)
    with pytest.raises(ImageUnavailable, match="AUTH_FILE"):
        build(tmp_path, registry, has_password=False)
    assert not (tmp_path / "recipe.lock").exists()
    assert list((tmp_path / "images/staging").iterdir()) == []
