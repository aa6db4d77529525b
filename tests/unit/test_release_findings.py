"""Findings of the doctor about the release of runsc."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rows import each_row
from sandfleet_worker.commands.checks import TESTED_RELEASES, State, check_release

ROOT = Path(__file__).parents[2]


@each_row(
    ("version", "state", "told"),
    [
        ("release-20240729.0", State.WARNING, "a job can crash its own sandbox (fixed in 20260601)"),
        ("release-20260620.0", State.TIP, "from 20260714 on a sandbox boots faster"),
        ("release-20260817.0", State.OK, "/usr/bin/runsc, release release-20260817.0"),
        ("release-20260905.0", State.OK, "/usr/bin/runsc, release release-20260905.0"),
        (
            "release-20230101.0",
            State.WARNING,
            "older than every release that was tested (20240729, 20250503, 20260905)",
        ),
        ("release-20991231.0", State.WARNING, "newer than every release that was tested"),
        ("VERSION_MISSING", State.WARNING, "it names no date"),
    ],
)
def test_the_release_is_named_and_one_that_was_not_tested_is_a_warning(version: str, state: State, told: str) -> None:
    binary: Any = SimpleNamespace(path="/usr/bin/runsc", version=version)
    finding = check_release(binary)
    assert finding.state is state
    assert finding.detail.startswith(f"/usr/bin/runsc, release {version}")
    assert told in finding.detail
    assert ("docs/how-to/gvisor-releases.md" in finding.fix) is (state is not State.OK)


def test_the_tested_releases_are_those_of_the_readme_and_of_the_set_up() -> None:
    *others, newest = TESTED_RELEASES
    assert f"{', '.join(map(str, others))} and {newest}." in " ".join((ROOT / "README.md").read_text().split())
    assert f"-{newest}" in (ROOT / "gvisor/go.mod").read_text()
    (middle,) = (ROOT / "gvisor/releases").iterdir()
    assert int(middle.name) in others
