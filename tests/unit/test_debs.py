"""The errors of apt, as they are told of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
from sandfleet_config.errors import ImageInvalid
from sandfleet_worker.sandbox.image.recipe.debs import lock_debs


class FailingApt:
    """An apt that knows the mirror, and none of the packages."""

    suite = "trixie"

    def prepare(self) -> None:
        """Do nothing."""

    def run(self, *arguments: str) -> str:
        if arguments[0] == "update":
            return ""
        lines = ("E: Unable to locate package one", "W: a warning", "E: Unable to locate package two")
        raise ImageInvalid.of("apt-get failed (exit 100): " + "\n".join(lines))


def test_each_missing_package_is_told() -> None:
    apt: Any = FailingApt()
    with pytest.raises(ImageInvalid) as caught:
        lock_debs(apt, ["one", "two"])
    assert caught.value.message.endswith("Unable to locate package one; Unable to locate package two")
