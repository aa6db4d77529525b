"""Which pulled images go to make room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sandfleet_config.image_settings import ImagesSettings
from sandfleet_worker.sandbox.image.cache import CachedImage, ImageCache

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Store:
    """Holds images that nobody uses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gone: list[str] = []

    def evict(self, digest: str) -> bool:
        self.gone.append(digest)
        return True


def test_an_image_that_was_just_pulled_stays_on_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its own pull would remove it before its job holds it: the job would pull it in vain."""
    store = Store(tmp_path)
    cache = ImageCache(cast("Any", store), ImagesSettings(root=tmp_path, max_bytes=100))
    found = [CachedImage("old", 60, 1.0), CachedImage("new", 200, 2.0)]
    monkeypatch.setattr(cache, "list_evictable", lambda: [image for image in found if image.digest not in store.gone])
    monkeypatch.setattr(cache, "_read_free", lambda: (0, 1000))
    assert cache.shrink(but="new") == ["old"]
    assert cache.shrink() == ["new"]
