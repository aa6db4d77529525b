from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from rows import each_row
from sandfleet import (
    Backend,
    Cancelled,
    ClientNotConfigured,
    Config,
    DaemonUnavailable,
    ErrorCode,
    ExecuteRequest,
    FleetRunner,
    ImageNotFound,
    ImageUnavailable,
    Outcome,
    OutOfMemory,
    SandboxResult,
    SandboxSpec,
    SandboxTimeout,
    SecurityViolation,
    SpecInvalid,
    StreamOutput,
)
from sandfleet.execute.backend import parse_value
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.outcome import LimitState, Runtime


class Parts:
    """Runner, health check, resolver and log in one; notes each request, in order."""

    def __init__(self, result: SandboxResult | Exception | None = None, **failing: Exception) -> None:
        self.calls: list[str] = []
        self.specs: list[SandboxSpec] = []
        self._result = result or SandboxResult(exit_code=0, stdout="", stderr="", duration=0.1)
        self._failing = failing

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self._failing:
            raise self._failing[name]

    def run(self, spec: SandboxSpec, **_: Any) -> SandboxResult:
        self._note("run")
        self.specs.append(spec)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def ping(self) -> None:
        self._note("ping")

    def resolve(self, image: str) -> str:
        self._note("resolve")
        return f"{image}@sha256:1"

    def info(self, msg: str, *args: object) -> None:
        raise RuntimeError(msg % args)  # a log may fail; an execution must not

    warning = error = info

    def config(self, **fields: Any) -> Config:
        return Config(client=self, health_checker=self, image_resolver=self, logger=self, **fields)


def test_the_order_is_health_image_run_and_errors_of_the_log_are_ignored() -> None:
    parts = Parts()
    result = Backend(parts.config()).execute({"code": "1"})
    assert parts.calls == ["ping", "resolve", "run"]
    assert parts.specs[0].image == "python@sha256:1"
    assert (result.backend.kind, Backend().kind) == ("gvisor", "gvisor")


def test_a_request_is_checked_before_all_else() -> None:
    for faulty in ({"code": ""}, {}, {"code": "1", "limits": {"pids_max": -1}}, {"code": "1", "profile": "root"}):
        with pytest.raises(SpecInvalid):
            Backend().execute(faulty)


def test_no_runner() -> None:
    parts = Parts()
    with pytest.raises(ClientNotConfigured):
        Backend(Config(health_checker=parts)).execute({"code": "1"})
    assert parts.calls == []


def test_a_failing_health_check_is_raised_with_its_cause() -> None:
    cause = OSError("no runsc")
    parts = Parts(ping=cause)
    with pytest.raises(DaemonUnavailable, match="no runsc") as caught:
        Backend(parts.config()).execute({"code": "1"})
    assert caught.value.__cause__ is cause
    assert parts.calls == ["ping"]


def test_an_image_that_cannot_be_resolved() -> None:
    with pytest.raises(ImageUnavailable):
        Backend(Parts(resolve=OSError("registry down")).config()).execute({"code": "1"})
    with pytest.raises(ImageNotFound):
        Backend(Parts(resolve=ImageNotFound.of("no such")).config()).execute({"code": "1"})


def test_the_spec_has_the_seeds_defaults_labels_and_units() -> None:
    parts = Parts()
    limits = {"cpu_quota_millis": 50, "memory_bytes": 64 << 20, "pids_max": 8, "disk_bytes": 4096}
    Backend(parts.config()).execute({"code": "print(1)", "limits": limits, "metadata": {"name": "a"}})
    (spec,) = parts.specs
    assert spec.command == ("python3", "-c", "print(1)")
    assert spec.resources.cpu_quota == 50_000
    assert (spec.resources.memory_bytes, spec.resources.pids_limit, spec.resources.disk_bytes) == (
        64 << 20,
        8,
        4096,
    )
    assert spec.labels == {"name": "a", "runtime.profile": "standard", "runtime.backend": "gvisor"}
    assert spec.timeout == 30
    assert (spec.platform, spec.runsc_path, spec.root_dir) == ("", "", "")


@pytest.mark.parametrize(
    ("profile", "network", "read_only"),
    [("dev", "sandbox", False), ("standard", "none", True), ("hardened", "none", True)],
)
def test_profiles(profile: str, network: str, read_only: bool) -> None:  # noqa: FBT001
    parts = Parts()
    result = Backend(parts.config(network_mode="sandbox")).execute({"code": "1", "profile": profile})
    security = parts.specs[0].security
    assert (security.network_mode, security.read_only_rootfs, security.user) == (network, read_only, "nobody:nogroup")
    assert result.backend.details == {"platform": "systrap", "networkMode": network, "profile": profile}


def test_a_host_network_is_a_violation() -> None:
    with pytest.raises(SecurityViolation):
        Backend(Parts().config(network_mode="host")).execute({"code": "1", "profile": "dev"})


def test_languages_and_long_code() -> None:
    parts = Parts()
    backend = Backend(parts.config())
    long = "#" * 100_000
    for language in ("shell", "sh", "bash", "python"):
        backend.execute({"code": "exit 1", "language": language})
        backend.execute({"code": long, "language": language})
    assert [spec.command[:2] for spec in parts.specs] == [
        ("sh", "-c"),
        ("sh", "-s"),
        ("sh", "-c"),
        ("sh", "-s"),
        ("bash", "-c"),
        ("bash", "-s"),
        ("python3", "-c"),
        ("python3", "-"),
    ]
    assert parts.specs[-1].stdin.data == long
    with pytest.raises(SpecInvalid, match="language"):
        backend.execute({"code": "1", "language": "cobol"})


@each_row(
    ("stdout", "value"),
    [
        ("", None),
        ("hello\n", None),
        ('__OUT__:{"a": 1}\n', {"a": 1}),
        ("__OUT__: 7\n\n  \n", 7),
        ("__OUT__:not json", "not json"),
        ("__OUT__:", ""),
        ("__OUT__:1\n__OUT__:2\nbye\n", 2),
        ('{"__out": [1]}\n', [1]),
        ('{"__out": null, "x": 1}\n', None),
        ('{"__out": 1}\n__OUT__:2\n', 2),
        ('__OUT__:2\n{"__out": 1}\n', 1),
        ('{"other": 1}\n', None),
        ("{broken\n", None),
        ("__OUT__:" + "[" * 100_000, "[" * 100_000),
    ],
)
def test_the_value_of_an_output(stdout: str, value: object) -> None:
    assert parse_value(stdout) == value


def test_a_plain_runner_enforces_no_limit() -> None:
    result = Backend(Parts(SandboxResult(exit_code=3, stdout="__OUT__:1", stderr="e", duration=2.0)).config()).execute(
        {"code": "1"}
    )
    assert (result.exit_code, result.value, result.stderr, result.duration) == (3, 1, "e", 2.0)
    assert not any(result.limits_enforced.model_dump().values())


def test_the_fleet_executes_and_names_the_limits_that_were_enforced() -> None:
    limits = {
        "memory_bytes": LimitState(value=1, enforced=True),
        "cpu_quota": LimitState(value=1, enforced=False),
        "pids_limit": LimitState(value=1, enforced=True),
        "timeout": LimitState(value=1, enforced=True),
    }
    outcome = Outcome.of(
        ErrorCode.EXIT_NONZERO,
        "",
        exit_code=3,
        stdout=StreamOutput.of(b"__OUT__:[1]\n"),
        limits=limits,
        runtime=Runtime(platform="kvm"),
    )
    fleet = FakeFleet(lambda _: outcome)
    result = fleet.execute("print(1)", profile="hardened", timeout=5, limits={"memory_bytes": "64MiB"})
    assert (result.value, result.exit_code) == ([1], 3)
    assert result.limits_enforced.model_dump() == {
        "timeout": True,
        "memory": True,
        "cpu": False,
        "pids": True,
        "disk": False,
    }
    assert result.backend.details["platform"] == "kvm"
    assert fleet.specs[0].timeout == 5
    assert fleet.specs[0].resources.memory_bytes == 64 << 20


def test_other_codes_than_an_exit_are_raised() -> None:
    with pytest.raises(OutOfMemory):
        FakeFleet(lambda _: OutOfMemory.of("too big")).execute("1")
    with pytest.raises(SpecInvalid):
        FakeFleet().execute("")


def test_a_deadline_cancels_the_job() -> None:
    fleet = FakeFleet(lambda _: None)
    with pytest.raises(SandboxTimeout) as caught:
        Backend(client=FleetRunner(fleet)).execute(ExecuteRequest(code="1"), deadline=time.monotonic() + 0.05)
    assert caught.value.outcome is not None
    assert caught.value.outcome.code is ErrorCode.CANCELLED


def test_an_event_cancels_the_job() -> None:
    fleet = FakeFleet(lambda _: None)
    event = threading.Event()
    timer = threading.Timer(0.05, event.set)
    timer.start()
    with pytest.raises(Cancelled):
        Backend(client=FleetRunner(fleet)).execute({"code": "1"}, cancel=event)
    timer.join()
