"""Which jobs can be given to a prepared interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sandfleet_worker.sandbox.prepared.use import Miss
from sandfleet_worker.sandbox.prepared_fit import MAX_REQUEST_BYTES, find_misfit, fits_command
from sandfleet_worker.sandbox.process.init_job import InitJob, WritablePath

ENV = ("PATH=/usr/bin:/bin", "HOME=/tmp", "HOSTNAME=sandbox", "LANG=C.UTF-8")
HOME = WritablePath("/home/u")
INTERPRETER = InitJob(
    candidates=["/usr/bin/python3", "/bin/python3"], argv=["python3", "-c", "boot"], envp=ENV, uid=65534, gid=65534
)


def job(*argv: str, **fields: Any) -> InitJob:
    return replace(INTERPRETER, argv=argv or ("python3", "-c", "pass"), **fields)


@pytest.mark.parametrize(
    "argv",
    [
        ("python3",),
        ("python", "-"),
        ("python3", "-c", "print(1)"),
        ("python3", "-c", ""),
        ("python3", "-m", "http.server", "-x"),
        ("python3.13", "script.py", "-c"),
        ("python3", "folder/"),
    ],
)
def test_commands_that_fit(argv: tuple[str, ...]) -> None:
    assert fits_command(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ("sh", "-c", "python3"),
        ("/usr/bin/python3", "-c", "pass"),
        ("python2", "-c", "pass"),
        ("python3x",),
        ("python3", "-c"),
        ("python3", "-m"),
        ("python3", "-cpass"),
        ("python3", "-u", "script.py"),
        ("python3", "-I", "-c", "pass"),
        ("python3", "--version"),
        ("python3", ""),
        ("python3", "--", "x"),
    ],
)
def test_commands_that_do_not_fit(argv: tuple[str, ...]) -> None:
    assert not fits_command(argv)


@pytest.mark.parametrize(
    ("fields", "miss"),
    [
        ({}, None),
        ({"envp": (*ENV, "MY_OWN=1", "HOSTNAME=other")}, None),
        ({"cwd": "/work"}, None),
        ({"candidates": ["/opt/bin/python3"]}, Miss.COMMAND),
        ({"is_root_writable": True}, Miss.ROOTFS),
        ({"uid": 1000}, Miss.USER),
        ({"gid": 1000}, Miss.USER),
        ({"groups": [5]}, Miss.USER),
        ({"envp": (*ENV, "PYTHONPATH=/x")}, Miss.ENVIRONMENT),
        ({"envp": (*ENV, "LD_PRELOAD=x.so")}, Miss.ENVIRONMENT),
        ({"envp": (*ENV, "OMP_NUM_THREADS=1")}, Miss.ENVIRONMENT),
        ({"envp": (*ENV, "LC_ALL=C")}, Miss.ENVIRONMENT),
        ({"envp": (*ENV, "TZ=")}, Miss.ENVIRONMENT),
        ({"envp": ENV[:-1]}, Miss.ENVIRONMENT),
        ({"envp": (*ENV[:-1], "LANG=C")}, Miss.ENVIRONMENT),
        ({"envp": (*ENV, "BIG=" + "x" * MAX_REQUEST_BYTES)}, Miss.COMMAND),
        ({"argv": ("python3", "-c", "pass", *["\N{CJK UNIFIED IDEOGRAPH-6F22}" * 10_000] * 6)}, None),
        ({"argv": ("python3", "-c", "pass", *["\N{CJK UNIFIED IDEOGRAPH-6F22}" * 20_000] * 6)}, Miss.COMMAND),
        ({"argv": ("python3", "-c", "pass", *[""] * MAX_REQUEST_BYTES)}, Miss.COMMAND),
        ({"argv": ("python3", "-c", "\udce4")}, None),
    ],
)
def test_all_else_must_be_as_it_was_prepared(fields: dict[str, Any], miss: Miss | None) -> None:
    argv = fields.pop("argv", ())
    assert find_misfit(job(*argv, **fields), INTERPRETER) is miss


@pytest.mark.parametrize(
    ("candidates", "fields", "miss"),
    [
        (["/home/u/bin/python3", "/usr/bin/python3"], {}, None),
        (["/home/u/bin/python3", "/usr/bin/python3"], {"has_files": True}, Miss.COMMAND),
        (["/work/bin/python3"], {}, None),
        (["/work/bin/python3"], {"writable_paths": [HOME, WritablePath("/work")]}, Miss.COMMAND),
        (["/workers/python3"], {"writable_paths": [HOME, WritablePath("/work")], "has_files": True}, None),
        (["python3", "/usr/bin/python3"], {}, Miss.COMMAND),
    ],
    ids=["home", "files in the home", "image's folder", "hidden folder", "beside it", "working folder"],
)
def test_a_job_that_may_find_another_program_starts_without(
    candidates: list[str], fields: dict[str, Any], miss: Miss | None
) -> None:
    interpreter = replace(INTERPRETER, candidates=candidates, writable_paths=[HOME])
    given = {"writable_paths": [HOME], "candidates": candidates, **fields}
    assert find_misfit(job(**given), interpreter) is miss


@pytest.mark.parametrize(
    "name", ["KMP_AFFINITY", "GOMP_CPU_AFFINITY", "GOTO_NUM_THREADS", "NUMBA_NUM_THREADS", "TZDIR"]
)
def test_variables_of_thread_pools_and_time_zones_count(name: str) -> None:
    assert find_misfit(job(envp=(*ENV, f"{name}=1")), INTERPRETER) is Miss.ENVIRONMENT
