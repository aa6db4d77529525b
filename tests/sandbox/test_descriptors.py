"""The limit of open files: raised if allowed, else kept; refused with a number if too low."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from leftovers import left_behind
from sandfleet_worker.system.descriptors import DescriptorNeed

if TYPE_CHECKING:
    from sandfleet_config.settings import HostSettings

BOOTS = 2 * (os.cpu_count() or 1)
WAITING = 8
"""The default of `SANDFLEET_WAITING_JOBS`."""
OTHERS = 13
"""Beside its sandbox and its image's lock a job has: two of its slot, five of files, four datasets.

The two others are a connection to Redis, and one in reserve.
"""
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


class Limited(Protocol):
    """Run jobs in a process with limits of its own; return what that says and what it logs."""

    def __call__(self, limits: tuple[int, int], **request: Any) -> tuple[dict[str, Any], str]: ...


@pytest.fixture
def limited(host: HostSettings) -> Limited:
    """Return a function that runs jobs in a process with limits of its own."""

    def run(limits: tuple[int, int], **request: Any) -> tuple[dict[str, Any], str]:
        request = {"concurrency": 2, "warm": 0, "jobs": 2, "command": ["true"]} | request
        request |= {"limits": limits, "root_dir": str(host.runsc.root_dir), "images": str(host.images.root)}
        support = Path(__file__).parents[1] / "support"
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("limited.py"), json.dumps(request)],
            env={**os.environ, "PYTHONPATH": str(support)},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not left_behind(host)
        return json.loads(done.stdout), done.stderr

    return run


def codes_of(told: dict[str, Any]) -> list[str]:
    return [text.split(":")[0] for text in told["endings"]]


def test_a_low_soft_limit_is_raised(limited: Limited) -> None:
    need = DescriptorNeed(64, BOOTS, 128, WAITING)
    told, log = limited((256, HARD), concurrency=64, warm=128)
    assert codes_of(told) == ["OK", "OK"]
    assert told["soft"] >= need.total
    assert told["spares"] == 128
    assert told["finding"][0] == "ok"
    assert "ahead" not in log


def test_the_usual_soft_limit_is_enough_for_64_jobs_at_once_and_128_spares(limited: Limited) -> None:
    assert DescriptorNeed(64, BOOTS, 128).total > 1024
    told, log = limited((1024, HARD), concurrency=64, warm=128, jobs=64, is_held=True, command=["sleep", "200"])
    assert codes_of(told) == ["CANCELLED"] * 64, told["endings"]
    assert told["spares"] == 128
    assert told["after"] == told["before"], "descriptors leak"
    assert "Too many open files" not in log


def test_fewer_spares_are_booted_under_a_low_hard_limit(limited: Limited) -> None:
    limit = DescriptorNeed(2, BOOTS, 3, WAITING).total
    told, log = limited((limit, limit), warm=64, is_filled=True)
    assert codes_of(told) == ["OK"] * 3
    assert 0 < told["spares"] < 64
    state, detail, _ = told["finding"]
    assert state == "tip", "it works, with fewer of them"
    assert f"{told['spares']} sandboxes are booted ahead instead of 64" in detail
    assert str(DescriptorNeed(2, BOOTS, 64, WAITING).total) in log
    assert "Too many open files" not in log


def test_a_limit_that_is_too_low_is_refused_with_the_number(limited: Limited) -> None:
    need = DescriptorNeed(64, BOOTS, 0, WAITING).total
    told, _ = limited((512, 512), concurrency=64, warm=64)
    state, detail, fix = told["finding"]
    assert state == "failed"
    assert f"64 sandboxes at once need a limit of {need}, and the hard limit is 512" in detail
    assert f"LimitNOFILE={need}" in fix
    assert "endings" not in told


def test_as_many_run_as_the_limit_was_computed_for(limited: Limited) -> None:
    limit = DescriptorNeed(24, BOOTS, 0, WAITING).total
    told, _ = limited((limit, limit), concurrency=24, jobs=24, others=OTHERS, is_held=True, command=["sleep", "200"])
    assert codes_of(told) == ["CANCELLED"] * 24, told["endings"]


def test_a_runner_alone_tells_that_the_host_has_no_descriptor_left(limited: Limited) -> None:
    told, _ = limited((100, 100), is_forced=True)
    assert codes_of(told) == ["HOST_RESOURCES"] * 2
    assert "limit of open files, 100" in told["endings"][0]
    assert told["after"] == told["before"], "descriptors leak"
    told, _ = limited((400, 400), is_forced=True, jobs=60, command=["sleep", "15"])  # all at once, on any machine
    assert set(codes_of(told)) == {"OK", "HOST_RESOURCES"}, told["endings"]
    assert told["after"] == told["before"], "descriptors leak"
