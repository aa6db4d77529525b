"""Prepared spares of this host, and how often they fit: findings of the doctor."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import redis
from sandfleet_config.errors import ImageInvalid
from sandfleet_config.queues import KEY_PREFIX, host_of_owner

from sandfleet_worker.commands.checks import Finding, State
from sandfleet_worker.host import connect
from sandfleet_worker.sandbox.prepared.registry import Preparations
from sandfleet_worker.sandbox.prepared.use import Miss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.sandbox.image.store import ImageStore
    from sandfleet_worker.sandbox.prepared.registry import Registered

NAME: Final = "prepared spares"
PAGE: Final = "docs/how-to/prepare-imports.md"
MAX_WORKERS: Final = 1000
LEAST_JOBS: Final = 20
"""After so few jobs their misses say little: the first ones meet no spare."""
FIXES: Final = {
    Miss.NO_SPARE: "keep more spares (SANDFLEET_WARM__SIZE, SANDFLEET_PREPARED__BUDGET_BYTES), or run fewer jobs at once",
    Miss.UNKNOWN: "sandfleet-worker images prepare IMAGE --name NAME on this host",
    Miss.COMMAND: "jobs start `python3`, then -c, -m, a file or -, without options of the interpreter",
    Miss.ENVIRONMENT: "jobs leave variables such as PYTHON*, LD_*, OMP_* and PATH as the image has them",
    Miss.FILES: "jobs put packages of their own into sys.path, not into ~/.local or a sitecustomize",
    Miss.USER: "jobs run as the image's own user",
    Miss.MEMORY: "jobs ask for more memory than the preparation needs, and 32 MiB",
    Miss.ROOTFS: "jobs leave their root file system read-only",
    Miss.INTERPRETER: "prepare images whose Python can be prepared",
    Miss.HOST: "give the worker a writable cgroup for cpu and memory",
    Miss.LOST: "see the worker's log (prepared_spare_lost)",
    Miss.QUARANTINE: "see the worker's log (preparation_in_quarantine), mend the image, then images prepare it again",
}
"""The fix for each reason why a job starts without the preparation that it asks for."""


class _Told(NamedTuple):
    """The sums of the running workers of this host."""

    workers: int
    starts: int
    misses: Counter[str]
    quarantined: Sequence[str]


def check_prepared(settings: WorkerSettings, images: ImageStore) -> Iterator[Finding]:
    """Say what is prepared here, and how often the jobs of running workers started so."""
    if settings.prepared.start == "off":
        yield Finding(NAME, State.OK, "none: SANDFLEET_PREPARED__START is off")
        return
    try:
        listed = Preparations(settings.images.root, settings.prepared).list_all()
    except ImageInvalid as error:
        yield Finding(NAME, State.WARNING, f"no preparation is used: {error.message}", "do what the message says")
        return
    yield _check_list(settings, listed, images)
    told = _read_workers(settings)
    if told is not None and told.workers:
        yield from _check_use(told)


def _check_list(settings: WorkerSettings, listed: Sequence[Registered], images: ImageStore) -> Finding:
    bare = "; also the plain interpreter of images with Python" if settings.prepared.start == "python" else ""
    if not listed:
        detail = f"no imports are prepared here{bare}"
        return Finding(NAME, State.OK, detail, f"jobs that import much start faster with a preparation: {PAGE}")
    detail = ", ".join(f"{entry.image}:{entry.name}" for entry in listed) + bare
    if not settings.warm.size:
        fix = "set SANDFLEET_WARM__SIZE to 1 or more"
        return Finding(NAME, State.WARNING, f"{detail}: none is used, as this host keeps no spares", fix)
    here = images.list_references()
    if gone := sorted({entry.image for entry in listed} - here):
        fix = f"add it, or sandfleet-worker images unprepare {gone[0]}"
        return Finding(NAME, State.WARNING, f"{detail}; not here: {', '.join(gone)}", fix)
    return Finding(NAME, State.OK, detail)


def _check_use(told: _Told) -> Iterator[Finding]:
    name, missed = "prepared starts", sum(told.misses.values())
    if told.quarantined:
        detail = f"in quarantine after failures: {', '.join(told.quarantined)}"
        yield Finding(name, State.WARNING, detail, FIXES[Miss.QUARANTINE])
    if not (told.starts or missed):
        yield Finding(name, State.OK, "no job of the running workers has asked for a preparation")
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in told.misses.most_common())
    detail = (
        f"{told.starts} of {told.starts + missed} jobs that asked{f'; not the others: {reasons}' if reasons else ''}"
    )
    is_rare = missed > told.starts and told.starts + missed >= LEAST_JOBS
    fix = _find_fix(told.misses) if is_rare else ""
    yield Finding(name, State.TIP if is_rare else State.OK, detail, fix)


def _find_fix(misses: Counter[str]) -> str:
    """Return what to do about the most frequent reason."""
    reason = misses.most_common(1)[0][0]
    return f"{FIXES[Miss(reason)]}: {PAGE}" if reason in set(Miss) else PAGE


def _read_workers(settings: WorkerSettings) -> _Told | None:
    """Return what the workers of this host told Redis; None if it does not answer."""
    client = connect(settings)
    try:
        owners = cast("list[bytes]", client.zrange(f"{KEY_PREFIX}owners", 0, MAX_WORKERS - 1))
        names = [owner.decode(errors="replace") for owner in owners]
        own = [name for name in names if host_of_owner(name) == settings.host_name]
        raw = cast("list[bytes | None]", client.mget([f"{KEY_PREFIX}status:{name}" for name in own]) if own else [])
    except (redis.RedisError, OSError):
        return None  # the finding `redis` tells it
    finally:
        client.close()
    told = [_parse_prepared(text) for text in raw]
    misses: Counter[str] = Counter()
    for one in told:
        misses.update(one.misses)
    quarantined = dict.fromkeys(name for one in told for name in one.quarantined)
    return _Told(len(told), sum(one.starts for one in told), misses, tuple(quarantined))


def _parse_prepared(raw: bytes | None) -> _Told:
    """Return what one worker says of prepared spares; whoever may write to Redis may lie there."""
    try:
        status: Any = json.loads(raw or b"{}")
        told = status.get("prepared", {})
        misses = Counter({str(reason): int(told["misses"][reason]) for reason in Miss if reason in told["misses"]})
        names = tuple(str(name)[:200] for name in told["quarantined"] if str(name).isprintable())
        return _Told(1, int(told["starts"]), misses, names)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return _Told(1, 0, Counter(), ())
