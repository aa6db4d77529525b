"""The command line has one grammar: each noun's list takes the same options."""

from __future__ import annotations

import pytest
from sandfleet.cli.lazy_group import find_command
from sandfleet.cli.watching import WatchCommand, WatchGroup

NOUNS = ("jobs", "batches", "hosts", "queues", "failures", "images", "audit")


@pytest.mark.parametrize("noun", NOUNS)
def test_each_noun_is_watched_by_w(noun: str) -> None:
    found = find_command(noun)
    options = {name for parameter in found.params for name in parameter.opts}
    assert {"-w", "--watch", "-o", "-q", "-n", "--no-trunc"} <= options
    parsed = found.make_context(noun, ["-w", "-o", "jsonl"])
    assert parsed.params["watch"] == 2.0, "without seconds, too"


def test_the_list_of_batches_is_watched_by_both_names() -> None:
    found = find_command("batch").commands["list"]
    assert isinstance(found, WatchCommand)
    assert not isinstance(found, WatchGroup)
    assert found.make_context("list", ["-w"]).params["watch"] == 2.0
