from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from sandfleet_config.errors import SecurityViolation, SpecInvalid
from sandfleet_config.settings import HostSettings, PolicySettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import admit

HOST = HostSettings()


def new_spec(**fields: Any) -> SandboxSpec:
    return SandboxSpec.model_validate({"image": "python", "command": ["true"], **fields})


def test_zero_is_the_ceiling() -> None:
    limits = admit(new_spec(), HOST)
    assert limits.memory_bytes == 512 << 20
    assert limits.pids_limit == 256
    assert limits.disk_bytes == 256 << 20
    assert (limits.timeout_seconds, limits.grace_seconds) == (30, 5)
    assert limits.output_bytes == 64 << 10


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"resources": {"memory_bytes": (512 << 20) + 1}}, "resources.memory_bytes"),
        ({"resources": {"cpu_quota": 1 << 30}}, "resources.cpu_quota"),
        ({"resources": {"pids_limit": 257}}, "resources.pids_limit"),
        ({"resources": {"disk_bytes": "1GiB"}}, "resources.disk_bytes"),
        ({"timeout": 3601}, "timeout"),
        ({"grace": 61}, "grace"),
        ({"output": {"max_bytes": "9MiB"}}, "output.max_bytes"),
    ],
)
def test_a_request_above_the_ceiling_is_refused_and_never_shortened(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        admit(new_spec(**fields), HOST)
    assert [fault["field"] for fault in caught.value.errors] == [field]


def test_a_request_above_the_ceiling_is_reported_in_its_own_units_with_the_setting() -> None:
    host = HostSettings(policy=PolicySettings(cpu_quota=100_000))
    for fields, said in (
        (
            {"resources": {"memory_bytes": "64GB"}},
            "resources.memory_bytes: 64 GB is above this host's ceiling of 512 MiB",
        ),
        ({"resources": {"memory_bytes": "64GB"}}, ", set by SANDFLEET_POLICY__MEMORY_BYTES"),
        ({"resources": {"cpu_quota": 250_000}}, "2.5 cores (cpu_quota 250000) is above"),
        ({"resources": {"cpu_quota": 250_000}}, "ceiling of 1 core (cpu_quota 100000)"),
        ({"resources": {"pids_limit": 300}}, "300 processes and threads is above this host's ceiling of 256 processes"),
        ({"timeout": 7200}, "timeout: 7200 s (2 h) is above this host's ceiling of 3600 s (1 h)"),
        ({"output": {"max_bytes": "8MiB"}}, "output.max_bytes: 8 MiB is above this host's ceiling of 1 MiB"),
    ):
        with pytest.raises(SpecInvalid) as caught:
            admit(new_spec(**fields), host)
        assert said in caught.value.message
        # As at submit: the field once, the words once.
        (fault,) = caught.value.errors
        assert caught.value.message == f"{fault['field']}: {fault['message']}"


def test_a_host_cannot_be_set_up_so_that_no_job_can_run() -> None:
    for field in ("memory_bytes", "cpu_quota", "disk_bytes"):
        with pytest.raises(ValidationError, match=field):
            PolicySettings.model_validate({field: 1})


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(SpecInvalid) as caught:
        admit(new_spec(timeout=9999, grace=99, resources={"pids_limit": 9999}), HOST)
    assert {fault["field"] for fault in caught.value.errors} == {"timeout", "grace", "resources.pids_limit"}


@pytest.mark.parametrize(
    "fields",
    [
        {"runsc_path": "/bin/sh"},
        {"root_dir": "/etc"},
        {"platform": "kvm"},
        {"security": {"network_mode": "sandbox"}},
        {"security": {"seccomp_profile": "mine"}},
    ],
)
def test_a_spec_cannot_choose_settings_of_the_host(fields: dict[str, Any]) -> None:
    with pytest.raises(SecurityViolation):
        admit(new_spec(**fields), HOST)


def test_a_spec_may_repeat_settings_of_the_host() -> None:
    repeated = new_spec(platform="systrap", runsc_path="runsc", root_dir="/var/run/gvisor/")
    assert admit(repeated, HOST).platform == "systrap"


def test_a_listed_platform_may_be_chosen() -> None:
    host = HostSettings(policy=PolicySettings(platforms=("kvm",)))
    assert admit(new_spec(platform="kvm"), host).platform == "kvm"


def test_images_are_matched_by_pattern() -> None:
    host = HostSettings(policy=PolicySettings(images=("py*", "sha256:*")))
    assert admit(new_spec(image="python"), host).platform == "systrap"
    with pytest.raises(SecurityViolation, match="ruby"):
        admit(new_spec(image="ruby"), host)


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (None, None, (30, 5)),
        (10, None, (10, 5)),
        (10, 12, (10, 2)),
        (100, 200, (30, 5)),
        (None, 20, (20, 0)),
        (0, -1, (30, 5)),
        (50, 10, (10, 0)),
    ],
)
def test_a_header_can_only_shorten(soft: float | None, hard: float | None, expected: tuple[float, float]) -> None:
    limits = admit(new_spec(), HOST).shortened(soft, hard)
    assert (limits.timeout_seconds, limits.grace_seconds) == expected
