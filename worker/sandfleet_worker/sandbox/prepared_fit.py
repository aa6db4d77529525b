"""Whether a job can be given to a prepared interpreter with the same result. Pure: no I/O."""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING, Final

from sandfleet_worker.sandbox.prepared.use import Miss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sandfleet_worker.sandbox.process.init_job import InitJob

MARGIN_BYTES: Final = 32 << 20
"""A job's memory limit is at least so much more than what is prepared."""
MAX_REQUEST_BYTES: Final = 192 << 10
"""Init hands over commands and environments up to 256 KiB."""
_INTERPRETER: Final = re.compile(r"python(3(\.[0-9]{1,3})?)?")
_THREADS: Final = (
    "OMP_",
    "GOMP_",
    "KMP_",
    "OPENBLAS_",
    "GOTO_",
    "BLIS_",
    "MKL_",
    "NUMEXPR_",
    "NUMBA_",
    "RAYON_",
    "POLARS_",
)
_OF_THE_START: Final = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", *_THREADS)
_NAMES_OF_THE_START: Final = frozenset(
    {"LANG", "LANGUAGE", "LOCPATH", "GCONV_PATH", "NLSPATH", "TZ", "TZDIR", "PATH", "HOME", "VIRTUAL_ENV"}
)
"""Variables that an interpreter or its libraries read when they start."""
_MODULES_OF_THE_START: Final = frozenset({"sitecustomize", "usercustomize"})


def is_interpreter(program: str) -> bool:
    """Whether a command's first word names Python: ``python``, ``python3``, ``python3.13``."""
    return _INTERPRETER.fullmatch(program) is not None


def find_misfit(job: InitJob, interpreter: InitJob, files: Iterable[str] = ()) -> Miss | None:
    """Return why `job`, to which `files` come, cannot be given to `interpreter`; None if it can."""
    if not fits_command(job.argv) or _may_find_another(job, interpreter):
        return Miss.COMMAND
    if sum(len(os.fsencode(text)) + 1 for text in (*job.argv, *job.envp)) > MAX_REQUEST_BYTES:
        return Miss.COMMAND
    if job.is_root_writable:
        return Miss.ROOTFS
    if (job.uid, job.gid, [*job.groups]) != (interpreter.uid, interpreter.gid, [*interpreter.groups]):
        return Miss.USER
    if _read_at_start(job.envp) != _read_at_start(interpreter.envp):
        return Miss.ENVIRONMENT
    if any(map(_find_reads_of_site(interpreter.envp), files)):
        return Miss.FILES
    return None


def _find_reads_of_site(envp: Iterable[str]) -> Callable[[str], bool]:
    """Return whether CPython's `site` reads a file when an interpreter starts: the job's come later.

    It adds the user's own packages to sys.path if their folder is there, and imports two modules.
    """
    env = _read_at_start(envp)
    own = posixpath.normpath(env.get("PYTHONUSERBASE") or posixpath.join(env.get("HOME", "/"), ".local"))
    folders = {posixpath.normpath(path) for path in env.get("PYTHONPATH", "").split(":") if path}

    def reads(file: str) -> bool:
        if file.startswith(f"{own}/") or file in folders:  # a zip file can stand in PYTHONPATH
            return True
        below = [file.removeprefix(f"{folder}/") for folder in folders if file.startswith(f"{folder}/")]
        return any(re.split("[./]", name, maxsplit=1)[0] in _MODULES_OF_THE_START for name in below)

    return reads


def _may_find_another(job: InitJob, interpreter: InitJob) -> bool:
    """Whether `job` may find another program: by PATH, its working folder, or a folder of its own."""
    prepared = {writable.path for writable in interpreter.writable_paths}
    own = tuple(f"{one.path}/" for one in job.writable_paths if job.has_files or one.path not in prepared)
    is_fixed = all(path.startswith("/") and not path.startswith(own) for path in job.candidates)
    return not is_fixed or [*job.candidates] != [*interpreter.candidates]


def fits_command(argv: Sequence[str]) -> bool:
    """Whether a command is Python with no other option than ``-c CODE`` or ``-m MODULE``."""
    if not is_interpreter(argv[0]):
        return False
    if len(argv) == 1 or argv[1] == "-":
        return True
    if argv[1] in {"-c", "-m"}:
        return len(argv) > 2  # noqa: PLR2004  the option and its value
    return argv[1] != "" and not argv[1].startswith("-")


def _read_at_start(envp: Iterable[str]) -> dict[str, str]:
    """Return the variables that count; of two with one name the first, as getenv(3) does."""
    found: dict[str, str] = {}
    for item in envp:
        name, _, value = item.partition("=")
        if name in _NAMES_OF_THE_START or name.startswith(_OF_THE_START):
            found.setdefault(name, value)
    return found
