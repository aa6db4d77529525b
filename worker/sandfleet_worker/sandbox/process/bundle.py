"""The OCI bundle of a sandbox, and the message that gives init its job. Pure: no I/O."""

from __future__ import annotations

import functools
import json
import math
import resource
from typing import TYPE_CHECKING, Any

from sandfleet_config.errors import ImageInvalid, SpecInvalid, UserInvalid
from sandfleet_config.files import DATA_FOLDER

from sandfleet_worker.sandbox.image.pack import HOSTNAME
from sandfleet_worker.sandbox.policy import count_cores
from sandfleet_worker.sandbox.process.init_job import InitJob, Rlimit, WritablePath, exec_candidates
from sandfleet_worker.sandbox.process.inputs import WORK_FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_worker.sandbox.image.datasets import DatasetMount
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.users import ResolvedUser
    from sandfleet_worker.sandbox.policy import Admitted

DOCKER_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_OPEN_FILES = 65000
"""With 65536 a job could crash its sandbox: gVisor's pipe(2) uses one number more than the limit,
past the end of its table.
"""

STACK_BYTES = 8 << 20
INIT_CAPABILITIES = [
    "CAP_KILL",  # signal the job's processes; the only one that init keeps while the job runs
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SYS_ADMIN",  # mount
    "CAP_SYS_CHROOT",
    "CAP_CHOWN",  # the writable folders, and the pipes
    "CAP_DAC_READ_SEARCH",  # reach a HOME inside a folder that is closed to others
    # A writable root's overlay changes files of every owner in its upper folder, as the user who
    # mounted it (measured: without these a job may neither write nor chmod its own files there).
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
]
"""The capabilities that init needs to mount the job's writable folders and to become its user.

There is no bounding set: no execve gives back a capability that was dropped.
"""

LIMIT_CAPABILITY = "CAP_SYS_RESOURCE"
"""Beside those, init of a prepared sandbox needs this one to limit the interpreter: it has another
user by then (tried: EPERM without it).
"""

TMP_MODE = 0o1777
WORK_MODE = 0o755
HOME_MODE = 0o700


@functools.lru_cache(maxsize=64)
def encode_config(
    rootfs: str,
    erofs: str,
    datasets: tuple[DatasetMount, ...] = (),
    *,
    inherits_capabilities: bool,
    is_prepared: bool = False,
) -> bytes:
    """Return `new_config` as the bytes of config.json.

    Each job asks for it, and texts are cheaper keys than paths.
    """
    config = new_config(rootfs, erofs, datasets, inherits_capabilities=inherits_capabilities, is_prepared=is_prepared)
    return json.dumps(config).encode()


def new_config(
    rootfs: str,
    erofs: str,
    datasets: Sequence[DatasetMount] = (),
    *,
    inherits_capabilities: bool,
    is_prepared: bool = False,
) -> dict[str, Any]:
    """Return config.json: an immutable EROFS root, no bind mount from the host, init as guest root.

    Each dataset is another EROFS, read-only for root too. Init makes a job's writable root, inside
    the sandbox. Labels never become annotations: runsc reads those as flags.
    """
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["init"],
            "env": [],
            "cwd": "/",
            "capabilities": new_capabilities(inherits_capabilities=inherits_capabilities, is_prepared=is_prepared),
            "noNewPrivileges": True,
            # Without it the guest inherits the worker's hard limit, which init cannot raise: it has
            # no CAP_SYS_RESOURCE.
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": MAX_OPEN_FILES, "hard": MAX_OPEN_FILES}],
        },
        "root": {"path": rootfs, "readonly": True},
        "hostname": HOSTNAME,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec", "nodev"]},
            *_mount_datasets(datasets),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
        "annotations": {
            "dev.gvisor.spec.rootfs.source": erofs,
            "dev.gvisor.spec.rootfs.type": "erofs",
        },
    }


def _mount_datasets(datasets: Sequence[DatasetMount]) -> list[dict[str, Any]]:
    """Return the mounts, below a tmpfs: the image's ``/data`` is read-only without mount points."""
    if not datasets:
        return []
    options = ["ro", "nosuid", "nodev"]
    folder = {
        "destination": DATA_FOLDER,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": [*options, "size=64k", "mode=0755"],
    }
    return [
        folder,
        *(
            {"destination": path, "type": "erofs", "source": str(erofs), "options": options}
            for path, erofs in sorted(datasets)
        ),
    ]


def new_capabilities(*, inherits_capabilities: bool, is_prepared: bool = False) -> dict[str, list[str]]:
    """Return init's capabilities.

    From release 20250611 on, an exec by root gets the union of bounding and inheritable ones.
    Without both, init would have none. A bounding set would do as well, but releases before
    20240916 give it to the sentry process on the host.
    """
    names = [*INIT_CAPABILITIES, *([LIMIT_CAPABILITY] if is_prepared else [])]
    capabilities = {"effective": names, "permitted": names}
    return {"bounding": [], **capabilities, **({"inheritable": names} if inherits_capabilities else {})}


def new_init_job(limits: Admitted, image: Image, user: ResolvedUser, *, uses_work: bool = False) -> InitJob:
    """Return the job that init runs.

    The image's config and the spec are joined as Docker joins them. A job that `uses_work` has
    ``/work`` as a writable folder, and starts there unless its spec names another one.

    Raises:
        SpecInvalid: neither spec nor image names a command, or it cannot be packed.
        ImageInvalid: the image has no folder ``/work``.
        UserInvalid: the user is root, and the host's policy does not allow that.
    """
    spec = limits.spec
    if (user.uid == 0 or user.gid == 0 or 0 in user.groups) and not limits.allow_root:
        msg = "security.user is root or in group 0, which this host's policy does not allow (SANDFLEET_POLICY__ALLOW_ROOT)"
        raise UserInvalid.of(msg)
    argv = [*image.entrypoint, *(spec.command or image.cmd)]
    if not argv:
        msg = "command: the spec names no command and the image has no default one"
        raise SpecInvalid.of(msg, errors=[{"field": "command", "message": msg}])
    home = home_of(image, user, uses_work=uses_work, uses_data=bool(spec.datasets))
    env = new_env(image.env, spec.env, home)
    try:
        candidates = exec_candidates(argv[0], env["PATH"])
    except ValueError as error:
        raise SpecInvalid.of(f"command: {error}", errors=[{"field": "command", "message": str(error)}]) from error
    return InitJob(
        candidates=candidates,
        argv=argv,
        envp=[f"{key}={value}" for key, value in env.items()],
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        cwd=spec.working_dir or (WORK_FOLDER if uses_work else image.working_dir) or "/",
        rlimits=new_rlimits(limits, user.uid),
        disk_bytes=limits.disk_bytes,
        writable_paths=_new_writable_paths(limits, image, home, uses_work=uses_work),
        is_root_writable=not spec.security.read_only_rootfs,
        has_datasets=bool(spec.datasets),
    )


def _new_writable_paths(limits: Admitted, image: Image, home: str, *, uses_work: bool) -> list[WritablePath]:
    modes = {"/tmp": TMP_MODE, "/dev/shm": TMP_MODE}  # noqa: S108  folders of the sandbox, not of the host
    if uses_work:
        if not image.has_directory(WORK_FOLDER):
            raise _no_folder(image, WORK_FOLDER, "files and artifacts")
        modes[WORK_FOLDER] = WORK_MODE
    if limits.spec.security.read_only_rootfs and image.has_directory(home):
        modes.setdefault(home, HOME_MODE)
    return [WritablePath(path, mode) for path, mode in modes.items()]


def check_data_folder(image: Image) -> None:
    """Raise ``ImageInvalid`` if the image has no folder ``/data`` to mount datasets in."""
    if not image.has_directory(DATA_FOLDER):
        raise _no_folder(image, DATA_FOLDER, "datasets")


def _no_folder(image: Image, folder: str, purpose: str) -> ImageInvalid:
    return ImageInvalid.of(
        f"image {image.name} has no folder {folder} for {purpose}, because an earlier sandfleet-worker "
        f"packed it, or because its own {folder} is no folder: add the image again (`sandfleet-worker images add`)"
    )


def home_of(image: Image, user: ResolvedUser, *, uses_work: bool = False, uses_data: bool = False) -> str:
    """Return the HOME of a job: the user's own if the image has that folder, else /tmp.

    So it is always writable. A home in ``/work`` is hidden where that is mounted: ``/work`` takes
    its place. So is a home in ``/data`` of a job with datasets.
    """
    home = user.home
    if uses_data and f"{home}/".startswith(f"{DATA_FOLDER}/"):
        return "/tmp"  # noqa: S108
    if uses_work and f"{home}/".startswith(f"{WORK_FOLDER}/"):
        return WORK_FOLDER
    is_usable = home not in {"", "/"} and not home.startswith(("/tmp/", "/dev", "/proc", "/sys"))  # noqa: S108
    return home if is_usable and image.has_directory(home) else "/tmp"  # noqa: S108


def new_env(image_env: Sequence[str], spec_env: Sequence[str], home: str) -> dict[str, str]:
    """Return the environment: Docker's defaults, then the image's, then the spec's.

    The last value of a name counts.
    """
    env = {"PATH": DOCKER_PATH, "HOME": home, "HOSTNAME": HOSTNAME}
    for item in (*image_env, *spec_env):
        key, _, value = item.partition("=")
        env[key] = value
    return env


def new_rlimits(limits: Admitted, uid: int) -> list[Rlimit]:
    """Return the guest's own limits.

    RLIMIT_NPROC is the pids limit: a host cgroup does not count guest threads. RLIMIT_CPU is more
    than a process can use on all cores before its time is up. If the worker's own clock fails, the
    sandbox's kernel ends the process. Init sets it: releases before 20241118 ignore it in the
    bundle (tried).
    """
    stack = Rlimit(resource.RLIMIT_STACK, STACK_BYTES, STACK_BYTES)
    wall_seconds = limits.timeout_seconds + limits.grace_seconds
    cpu_seconds = math.ceil(wall_seconds * count_cores()) + 1
    # gVisor counts a process for the user that it started as (measured). A job's first process
    # started as init's user, so it is not counted. For uid 0, init is counted in its place, because
    # it started as root.
    counted = limits.pids_limit if uid == 0 else limits.pids_limit - 1
    return [
        Rlimit(resource.RLIMIT_NPROC, counted, counted),
        Rlimit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
        Rlimit(resource.RLIMIT_CORE, 0, 0),
        Rlimit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds),
        stack,
    ]
