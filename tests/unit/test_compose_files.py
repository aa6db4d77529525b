"""Read the files that build and start containers; only Docker can show whether they work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.settings import setting_names
from sandfleet_config.web_settings import web_setting_names

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
SERVICES = ("redis", "worker", "flower", "web", "prometheus", "cli", "images")


def read_service(name: str) -> str:
    """Return one service's lines without comments; indentation cuts YAML, without a library."""
    found = re.search(rf"^  {name}:\n((?:    .*\n|\n|  +#.*\n)+)", COMPOSE.partition("\nservices:\n")[2], re.MULTILINE)
    assert found is not None
    return re.sub(r"(^|\s)#.*", "", found.group(1))


def read_profile() -> dict[str, Any]:
    profile: dict[str, Any] = json.loads((ROOT / "docker" / "seccomp-runsc.json").read_text())
    return profile


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_gets_the_host(name: str) -> None:
    service = read_service(name)
    assert "<<: *service" in service
    for forbidden in (
        "privileged",
        "SYS_ADMIN",
        "docker.sock",
        "unconfined-seccomp",
        "seccomp=unconfined",
        "devices:",
        "pid:",
    ):
        assert forbidden not in service


def test_the_worker_gets_two_capabilities() -> None:
    assert "cap_add: [DAC_OVERRIDE, SETFCAP]" in read_service("worker")


@pytest.mark.parametrize("name", ["redis", "flower", "web", "prometheus", "cli"])
def test_the_others_get_none(name: str) -> None:
    assert "cap_add" not in read_service(name)


def test_every_service_drops_all_capabilities_first() -> None:
    shared = COMPOSE.partition("x-service:")[2].partition("x-redis-url:")[0]
    for line in ("cap_drop: [ALL]", "read_only: true", "no-new-privileges:true"):
        assert line in shared


def test_a_list_of_its_own_keeps_no_new_privileges() -> None:
    # A service's own `security_opt` replaces the shared one.
    assert "no-new-privileges:true" in read_service("worker")


def test_containers_get_known_settings_only() -> None:
    known = {key for key, *_ in setting_names()} | web_setting_names()
    given = {
        key for name in SERVICES for key in re.findall(r"^      (SANDFLEET_\w+):", read_service(name), re.MULTILINE)
    }
    assert given
    assert given <= known


def test_only_pages_are_published_and_only_on_loopback() -> None:
    published = [name for name in SERVICES if "ports:" in read_service(name)]
    assert published == ["flower", "web", "prometheus"]
    for name in published:
        assert re.findall(r'ports: \["(.+?):\$', read_service(name)) == ["127.0.0.1"]


def test_the_pages_in_flower_and_those_alone_have_one_history() -> None:
    for name in ("flower", "web"):
        service = read_service(name)
        assert "SANDFLEET_WEB__HISTORY__FILE: /var/lib/sandfleet/history/history.sqlite\n" in service
        assert "    volumes:\n      - history:/var/lib/sandfleet/history\n" in service
    assert "install -d -o 65534 -g 65534 -m 0700 /var/lib/sandfleet/history" in DOCKERFILE


def test_prometheus_is_started_only_by_its_profile() -> None:
    assert "profiles: [prometheus]" in read_service("prometheus")


def test_secrets_have_no_default() -> None:
    for name in ("SANDFLEET_REDIS_PASSWORD", "SANDFLEET_FLOWER_AUTH", "SANDFLEET_WEB_AUTH"):
        assert f"${{{name}:?" in COMPOSE
        assert f"${{{name}:-" not in COMPOSE


def test_redis_keeps_what_it_is_given() -> None:
    service = read_service("redis")
    assert '--appendonly, "yes"' in service
    assert "--maxmemory-policy, noeviction" in service


def test_workers_share_locks_and_cannot_change_images() -> None:
    service = read_service("worker")
    assert ":/run/sandfleet\n" in service
    assert "SANDFLEET_RUNSC__ROOT_DIR: /run/sandfleet/" in service
    assert "images:/var/lib/sandfleet/images:ro" in service


def test_the_profile_refuses_by_default() -> None:
    profile = read_profile()
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    dangerous = {
        *("bpf", "perf_event_open", "init_module", "finit_module", "kexec_load", "reboot", "swapon", "acct"),
        *("keyctl", "add_key", "userfaultfd", "io_uring_setup", "open_by_handle_at", "process_vm_writev"),
        *("fsopen", "move_mount", "open_tree", "setns", "settimeofday", "iopl", "quotactl", "syslog", "mknod"),
    }
    assert not allowed & dangerous


def test_the_profile_allows_what_the_launcher_and_the_warm_pool_call() -> None:
    # A launcher that is refused the first two says nothing: sandboxes only become slower.
    wanted = {"seccomp", "sched_setscheduler", "pidfd_open", "pidfd_send_signal", "eventfd2", "epoll_ctl", "prctl"}
    free = {
        name
        for rule in read_profile()["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }
    assert wanted <= free


def test_the_profile_hides_clone3_so_that_programs_fall_back() -> None:
    rules = [rule for rule in read_profile()["syscalls"] if "clone3" in rule["names"]]
    assert [(rule["action"], rule["errnoRet"]) for rule in rules] == [("SCMP_ACT_ERRNO", 38)]


def test_the_profile_limits_socket_families() -> None:
    rules = [rule for rule in read_profile()["syscalls"] if "socket" in rule["names"]]
    assert [argument["value"] for rule in rules for argument in rule["args"]] == [1, 2, 10, 16]


def test_the_health_check_knows_the_key_prefix() -> None:
    assert f'KEY_PREFIX = "{KEY_PREFIX}"' in (ROOT / "docker" / "worker_health.py").read_text()


def test_the_build_sees_each_file_it_copies() -> None:
    sources = [path for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()]
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_final_images_take_no_compiler_along() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    final = [stage for stage in stages if not re.match(r"\S+ AS build\n", stage)]
    assert len(final) == len(stages) - 1
    assert not [stage for stage in final if re.search(r"\b(gcc|libc6-dev|python3-venv)\b", stage)]
