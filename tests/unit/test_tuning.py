"""The doctor's tips: what would make a host faster, from files that look like one."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from sandfleet_config.settings import RunscSettings, WorkerSettings
from sandfleet_worker.commands import doctor
from sandfleet_worker.commands.checks import Finding, State
from sandfleet_worker.commands.tuning import (
    check_grace_periods,
    check_processes,
    check_runsc_pages,
    check_slots_per_core,
    check_tuning,
    find_mount,
)

if TYPE_CHECKING:
    from pathlib import Path

MOUNTINFO = """\
21 1 8:1 / / rw,relatime - ext4 /dev/root rw
22 21 0:20 / /run rw,nosuid - tmpfs tmpfs rw,mode=755
23 22 0:21 / /run/user rw shared:4 master:2 - ext4 /dev/sdb1 rw
24 21 0:22 / /with\\040blank rw - xfs /dev/sdc1 rw
25 21 0:23 / /twice rw - ext4 /dev/sdd1 rw
26 25 0:24 / /twice rw - tmpfs tmpfs rw
"""


def new_sys(folder: Path, **files: str) -> Path:
    (folder / "kernel").mkdir()
    for name, text in files.items():
        (folder / "kernel" / name).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("files", "states"),
    [
        ({}, []),
        ({"rcu_expedited": "0"}, [State.TIP]),
        ({"rcu_expedited": "0", "rcu_normal": "0"}, [State.TIP]),
        ({"rcu_expedited": "1", "rcu_normal": "0"}, [State.OK]),
        ({"rcu_expedited": "1", "rcu_normal": "1"}, [State.TIP]),
    ],
    ids=str,
)
def test_slow_grace_periods_are_told(tmp_path: Path, files: dict[str, str], states: list[State]) -> None:
    found = list(check_grace_periods(new_sys(tmp_path, **files)))

    assert [finding.state for finding in found] == states
    assert all(bool(finding.fix) == (finding.state is State.TIP) for finding in found)


@pytest.mark.parametrize(("slots", "state"), [(1, State.OK), (4, State.OK), (5, State.TIP)])
def test_more_than_two_slots_a_core_are_told(slots: int, state: State) -> None:
    assert check_slots_per_core(slots, cores=2).state is state


@pytest.mark.parametrize(
    ("processes", "cores", "slots", "state", "said"),
    [
        (1, 2, 2, State.OK, "1 process for 2 cores and 2 slots"),
        (1, 36, 36, State.TIP, "1 process for 36 cores and 36 slots: one process"),
        (1, 36, 1, State.OK, "1 process for 36 cores and 1 slot"),
        (2, 36, 36, State.TIP, "2 processes for 36 cores"),
        (4, 36, 36, State.OK, "4 processes for 36 cores"),
        ("auto", 36, 36, State.OK, "3 processes (auto) for 36 cores and 36 slots"),
    ],
)
def test_the_doctor_says_how_many_processes_it_would_choose(
    processes: int | str, cores: int, slots: int, state: State, said: str
) -> None:
    settings = WorkerSettings.model_validate({"processes": processes, "concurrency": slots})
    found = check_processes(settings, cores)

    assert found.state is state
    assert found.detail.startswith(said)
    assert found.fix.startswith("SANDFLEET_PROCESSES=auto, here 3, ") == (state is State.TIP)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/run/gvisor", "tmpfs"),
        ("/runtime", "ext4"),
        ("/run/user/0/gvisor", "ext4"),
        ("/with blank/gvisor", "xfs"),
        ("/twice/gvisor", "tmpfs"),
    ],
)
def test_the_filesystem_of_a_folder_that_need_not_be_there(tmp_path: Path, path: str, kind: str) -> None:
    # Below a folder of the test's own, so that no link of this machine counts.
    text = "\n".join(_below(tmp_path, line) for line in MOUNTINFO.splitlines())
    assert find_mount(tmp_path / path.lstrip("/"), text).kind == kind


def _below(folder: Path, line: str) -> str:
    words = line.split(" ")
    words[4] = str(folder).replace(" ", "\\040") + words[4].rstrip("/")
    return " ".join(words)


def test_a_link_counts_as_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    text = f"1 0 0:1 / {tmp_path} rw - tmpfs t rw\n2 1 0:2 / {tmp_path}/disk rw - ext4 d rw"
    assert find_mount(tmp_path / "link" / "gvisor", text).kind == "ext4"


def test_a_host_has_all_tips_and_none(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    for kind, expedited, slots, states in (("ext4", "0", 64, {State.TIP}), ("tmpfs", "1", 26, {State.OK})):
        mountinfo.write_text(f"1 0 0:1 / / rw - {kind} x rw,huge=always")
        folder = tmp_path / kind
        folder.mkdir()
        sys = new_sys(folder, rcu_expedited=expedited)
        runsc = RunscSettings(root_dir=tmp_path / "runsc", path="/bin/sh")  # any program
        settings = WorkerSettings(concurrency=slots, runsc=runsc, processes="auto" if slots == 26 else 1)

        found = list(check_tuning(settings, sys=sys, mountinfo=mountinfo, cores=13))

        assert len(found) == 5
        assert {finding.state for finding in found} == states


@pytest.mark.parametrize(
    ("options", "state"), [("rw", State.TIP), ("rw,huge=never", State.TIP), ("huge=always", State.OK)]
)
def test_a_runsc_in_small_pages_is_told(tmp_path: Path, options: str, state: State) -> None:
    runsc = tmp_path / "runsc"
    runsc.touch(mode=0o755)
    (found,) = check_runsc_pages(str(runsc), f"1 0 0:1 / {tmp_path} rw - tmpfs x {options}")
    assert found.state is state


def test_a_runsc_that_is_not_there_is_no_matter_of_pages(tmp_path: Path) -> None:
    assert not list(check_runsc_pages(str(tmp_path / "runsc"), MOUNTINFO))


@pytest.mark.parametrize("as_json", [False, True])
def test_a_tip_is_shown_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    tip = Finding("slots per core", State.TIP, "many", "fewer")
    monkeypatch.setattr(doctor, "examine", lambda _: iter([tip]))
    text = io.StringIO()

    assert doctor.report(WorkerSettings(), Console(file=text, width=100), as_json=as_json)

    if as_json:
        assert json.loads(capsys.readouterr().out)[0]["state"] == "tip"
    else:
        assert {"tip", "fewer"} <= set(text.getvalue().split())
