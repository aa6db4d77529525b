"""Programs of the conformance suite end the same in real sandboxes, cold and prepared, as far as a job can have them."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from comparing import differences
from conforming import ConformingHost, can_be_prepared, open_host
from preparedhost import read_version
from programs import read_cases
from pythons import IS_WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.settings import HostSettings

SAMPLE = 40
"""Without TEST_CONFORMANCE=all, one case of so many runs."""


@pytest.fixture
def conforming_host(host: HostSettings) -> Iterator[ConformingHost]:
    with open_host(host, "python", read_cases()) as opened:
        yield opened


def test_mounts_are_a_known_difference(conforming_host: ConformingHost) -> None:
    """Else it has to leave the list. Plain processes show no mounts of init."""
    (case,) = (case for case in read_cases() if "mounts" in case.masks)
    cold, prepared = conforming_host.run_cold(case), conforming_host.run_prepared(case)
    assert differences(case, cold, prepared) == []
    assert differences(replace(case, masks=()), cold, prepared)


@pytest.mark.timeout(7200)
def test_programs_end_the_same_in_sandboxes(conforming_host: ConformingHost) -> None:
    version = read_version(conforming_host.runner)
    chosen = [case for case in read_cases() if can_be_prepared(case, version)]
    if not IS_WHOLE:
        chosen = [case for case in chosen if zlib.crc32(case.name.encode()) % SAMPLE == 0]
    assert {bool(case.modules) for case in chosen} == {True, False}
    assert [line for case in chosen for line in conforming_host.compare(case)] == []
