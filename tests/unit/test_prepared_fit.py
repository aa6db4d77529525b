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
    ("env", "file", "miss"),
    [
        (ENV, "/tmp/.local/lib/python3.11/site-packages/x.py", Miss.FILES),
        (ENV, "/tmp/.local/lib/python3.11/site-packages/x.pth", Miss.FILES),
        (ENV, "/tmp/.locally/x.py", None),
        (ENV, "/work/sitecustomize.py", None),
        ((*ENV, "HOME=/home/u"), "/tmp/.local/x", Miss.FILES),  # of two the first counts
        ((*ENV, "PYTHONUSERBASE=/work/base"), "/work/base/lib/python3.11/site-packages/x.py", Miss.FILES),
        ((*ENV, "PYTHONUSERBASE=/work/base"), "/tmp/.local/lib/python3.11/site-packages/x.py", None),
        ((*ENV, "PYTHONPATH=/opt:/work/"), "/work/sitecustomize.py", Miss.FILES),
        ((*ENV, "PYTHONPATH=/opt:/work"), "/work/usercustomize/__init__.py", Miss.FILES),
        ((*ENV, "PYTHONPATH=/opt:/work"), "/work/sitecustomize.cpython-311-x86_64-linux-gnu.so", Miss.FILES),
        ((*ENV, "PYTHONPATH=/opt:/work"), "/work/sub/sitecustomize.py", None),
        ((*ENV, "PYTHONPATH=/opt:/work"), "/work/mine.py", None),
        ((*ENV, "PYTHONPATH=/work/lib.zip"), "/work/lib.zip", Miss.FILES),
        ((*ENV, "PYTHONPATH="), "/work/sitecustomize.py", None),
    ],
)
def test_files_that_site_reads_at_the_start_do_not_fit(env: tuple[str, ...], file: str, miss: Miss | None) -> None:
    interpreter = replace(INTERPRETER, envp=env)
    assert find_misfit(job(envp=env), interpreter, ["/work/other.txt", file]) is miss
    assert find_misfit(job(envp=env), interpreter) is None


@pytest.mark.parametrize(
    "name", ["KMP_AFFINITY", "GOMP_CPU_AFFINITY", "GOTO_NUM_THREADS", "NUMBA_NUM_THREADS", "TZDIR"]
)
def test_variables_of_thread_pools_and_time_zones_count(name: str) -> None:
    assert find_misfit(job(envp=(*ENV, f"{name}=1")), INTERPRETER) is Miss.ENVIRONMENT
