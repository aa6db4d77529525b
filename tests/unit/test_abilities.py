"""In which order the ways to boot are tried, and what is remembered of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sandfleet_config.errors import GVisorNotAvailable, HostResources, SandboxCreationFailed, SandboxError
from sandfleet_worker.sandbox.process.abilities import AbilityFinder, candidates
from sandfleet_worker.sandbox.process.runsc import Abilities, RunscBinary, parse_flags

OLD = RunscBinary("/bin/true", "0.0~20240729.0", frozenset({"directfs", "platform"}))
NEW = RunscBinary("/bin/true", "release-20260905.0", frozenset({"directfs", "sidecar-usage-policy"}))
OWN = RunscBinary("/bin/true", "VERSION_MISSING", frozenset({"directfs"}))
ANCIENT = RunscBinary("/bin/true", "VERSION_MISSING", frozenset({"platform"}))


def ways(binary: RunscBinary, *, is_rootless: bool = False) -> list[tuple[bool, bool]]:
    found = list(candidates(binary, is_rootless=is_rootless))
    assert {abilities.is_quiet for abilities in found} == {binary is NEW}
    return [(abilities.inherits_capabilities, abilities.is_directfs_off) for abilities in found]


def test_every_way_is_tried_in_the_order_of_the_release() -> None:
    assert ways(OLD) == [(False, True), (False, False), (True, True), (True, False)]
    assert ways(NEW) == ways(OWN) == [(True, True), (True, False), (False, True), (False, False)]


def test_no_flag_is_passed_to_a_runsc_that_does_not_know_it() -> None:
    assert ways(ANCIENT) == ways(NEW, is_rootless=True) == [(True, False), (False, False)]


def test_flags_are_parsed_from_the_output_of_runsc() -> None:
    text = "Usage:\n  -directfs\n    \tdirectly access (default true)\n  -net-raw\n  -TESTONLY-x string\nnot -this\n"
    assert parse_flags(text) == {"directfs", "net-raw"}


class Boots:
    """Boots only with `works`; notes what was tried."""

    def __init__(self, *works: Abilities) -> None:
        self.works, self.tried = works, list[Abilities]()
        self.error: type[SandboxError] = SandboxCreationFailed

    def __call__(self, binary: RunscBinary, platform: str) -> None:
        assert platform == "systrap"
        self.tried.append(binary.abilities)
        if binary.abilities not in self.works:
            raise self.error.of(f"way {len(self.tried)}")


@pytest.fixture
def binary(tmp_path: Path) -> RunscBinary:
    runsc = tmp_path / "bin/runsc"
    runsc.parent.mkdir()
    shutil.copy("/bin/true", runsc)
    return RunscBinary(str(runsc), NEW.version, NEW.flags)


WITHOUT_DIRECTFS = Abilities(inherits_capabilities=True, is_directfs_off=True, is_quiet=True)
WITH_DIRECTFS = Abilities(inherits_capabilities=True, is_directfs_off=False, is_quiet=True)
WITH_DATASETS = replace(WITHOUT_DIRECTFS, mounts_erofs=True)


def test_a_way_that_a_closed_file_explains_is_remembered_until_it_is_open(tmp_path: Path, binary: RunscBinary) -> None:
    boots = Boots(WITH_DIRECTFS)
    Path(binary.path).chmod(0o700)
    finder = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
    assert [finder.complete(binary, "systrap").abilities for _ in range(3)] == [WITH_DIRECTFS] * 3
    assert boots.tried == [WITHOUT_DIRECTFS, WITH_DIRECTFS, replace(WITH_DIRECTFS, mounts_erofs=True)]
    other = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
    assert other.complete(binary, "systrap").abilities == WITH_DIRECTFS
    assert len(boots.tried) == 3
    Path(binary.path).chmod(0o705)
    boots.works = (WITHOUT_DIRECTFS,)
    restarted = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
    assert restarted.complete(binary, "systrap").abilities == WITHOUT_DIRECTFS


def test_a_failure_that_nothing_explains_weakens_this_process_only(tmp_path: Path, binary: RunscBinary) -> None:
    boots = Boots(WITH_DIRECTFS)
    finder = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
    assert finder.complete(binary, "systrap").abilities == WITH_DIRECTFS
    boots.works = (WITHOUT_DIRECTFS,)
    assert finder.complete(binary, "systrap").abilities == WITH_DIRECTFS
    for _ in range(2):
        other = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
        assert other.complete(binary, "systrap").abilities == WITHOUT_DIRECTFS
    assert len(boots.tried) == 3 + 2, "two boots, one of them for datasets: the best way is remembered"


def test_the_ability_to_mount_datasets_is_proved_by_a_boot(tmp_path: Path, binary: RunscBinary) -> None:
    boots = Boots(WITHOUT_DIRECTFS, WITH_DATASETS)
    finder = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
    assert finder.complete(binary, "systrap").abilities == WITH_DATASETS
    assert boots.tried == [WITHOUT_DIRECTFS, WITH_DATASETS]
    old = replace(binary, version=OLD.version)
    boots.tried.clear()
    finder.forget(binary)
    assert finder.complete(old, "systrap").abilities == replace(WITHOUT_DIRECTFS, inherits_capabilities=True)
    assert WITH_DATASETS not in boots.tried, "releases before 20260126 are not asked"


def test_what_an_earlier_release_of_ours_remembered_is_asked_again(tmp_path: Path, binary: RunscBinary) -> None:
    boots = Boots(WITHOUT_DIRECTFS, WITH_DATASETS)
    AbilityFinder(tmp_path, is_rootless=False, boot=boots).complete(binary, "systrap")
    memory = tmp_path / "runsc-abilities.json"
    known = json.loads(memory.read_text())
    for facts in known.values():
        del facts["mounts_erofs"]
    memory.write_text(json.dumps(known))
    other = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
    assert other.complete(binary, "systrap").abilities == WITH_DATASETS


def test_another_file_at_the_same_path_and_the_same_file_at_another_path_are_tried_again(
    tmp_path: Path, binary: RunscBinary
) -> None:
    boots = Boots(WITHOUT_DIRECTFS)
    AbilityFinder(tmp_path, is_rootless=False, boot=boots).complete(binary, "systrap")
    moved = RunscBinary(str(shutil.copy(binary.path, tmp_path / "runsc")), binary.version, binary.flags)
    AbilityFinder(tmp_path, is_rootless=False, boot=boots).complete(moved, "systrap")
    shutil.copy("/bin/false", binary.path)
    AbilityFinder(tmp_path, is_rootless=False, boot=boots).complete(binary, "systrap")
    assert len(boots.tried) == 6


def test_forgotten_abilities_are_tried_again(tmp_path: Path, binary: RunscBinary) -> None:
    boots = Boots(WITHOUT_DIRECTFS)
    finder = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
    finder.complete(binary, "systrap")
    finder.forget(binary)
    boots.works = (WITH_DIRECTFS,)
    assert finder.complete(binary, "systrap").abilities == WITH_DIRECTFS


def test_if_no_way_works_the_first_failure_is_raised_and_nothing_remembered(
    tmp_path: Path, binary: RunscBinary
) -> None:
    boots = Boots()
    finder = AbilityFinder(tmp_path, is_rootless=False, boot=boots)
    for attempt in (0, 4):
        with pytest.raises(SandboxCreationFailed, match=f"way {attempt + 1}"):
            finder.complete(binary, "systrap")
    assert len(boots.tried) == 8


def test_without_memory_no_other_way_is_tried(tmp_path: Path, binary: RunscBinary) -> None:
    boots = Boots()
    boots.error = HostResources
    with pytest.raises(HostResources):
        AbilityFinder(tmp_path, is_rootless=False, boot=boots).complete(binary, "systrap")
    assert len(boots.tried) == 1


def test_a_damaged_memory_is_no_memory(tmp_path: Path, binary: RunscBinary) -> None:
    boots = Boots(WITHOUT_DIRECTFS)
    for text in ("", "{", "[]", '{"x": 1}'):
        (tmp_path / "runsc-abilities.json").write_text(text)
        AbilityFinder(tmp_path, is_rootless=False, boot=boots).complete(binary, "systrap")
    assert len(boots.tried) == 8


def test_a_runsc_that_is_gone_or_cannot_be_read_is_not_available(binary: RunscBinary, tmp_path: Path) -> None:
    finder = AbilityFinder(tmp_path, is_rootless=False, boot=Boots())
    Path(binary.path).unlink()
    for call in (lambda: finder.complete(binary, "systrap"), lambda: finder.forget(binary)):
        with pytest.raises(GVisorNotAvailable, match=r"runsc: No such file.*SANDFLEET_RUNSC__PATH"):
            call()
