"""``sandfleet run``: one job, waited for, whose output and exit code become the command's own."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import RequestError, SpecInvalid, SpecTooLarge
from sandfleet_config.words import CPU_PERIOD_MICROSECONDS, format_bytes

from sandfleet.cli.exits import INTERRUPTED, OUR_FAILURE, TERMINATED, exit_code, is_own_exit
from sandfleet.cli.hints import word_refusal
from sandfleet.cli.show import explain, note
from sandfleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from types import FrameType
    from typing import BinaryIO

    from sandfleet_config.outcome import Outcome, StreamOutput

    from sandfleet.fleet import Fleet
    from sandfleet.job import Job

PATIENCE_SECONDS = 2.0
"""A job on a live fleet has often ended by then; if not, ask whether anybody listens."""


class Terminated(BaseException):
    """SIGTERM came: cancel as for Ctrl-C. No ``except Exception`` on the way may keep it, as none keeps `KeyboardInterrupt`."""


def run_job(fleet: Fleet, fields: Mapping[str, Any], *, queue: str | None = None, is_json: bool) -> int:
    """Submit the spec `fields`, wait, pass output on; return the exit code. Ctrl-C and SIGTERM cancel the job."""
    try:
        job = fleet.submit(fields, queue=queue)
    except RequestError as error:
        note(word_refusal(error))
        return OUR_FAILURE
    if not fields["command"]:
        note("no command was given: the image's own one runs")
    try:
        with _sigterm_raises(), _watch_for_workers(fleet):
            outcome = job.outcome()
    except KeyboardInterrupt:
        return _cancel(job, INTERRUPTED)
    except Terminated:
        return _cancel(job, TERMINATED)
    except FleetError:
        note(f"the job goes on as far as it can; see it again with: sandfleet show {job.id}")
        raise
    if is_json:
        print(json.dumps(outcome.to_json(), indent=2))  # ASCII only: safe on a terminal
    else:
        _pass_output(outcome)
    if not is_own_exit(outcome):
        # The image of `sandfleet run NAME` is not NAME, as docker's users may think.
        hint = (
            f" ({fields['image']}; --image NAME takes another)" if outcome.code is ErrorCode.COMMAND_NOT_FOUND else ""
        )
        note(explain(outcome) + hint)
    return exit_code(outcome)


def _cancel(job: Job, code: int) -> int:
    result = job.cancel()
    note(f"CANCELLED: job {job.id}: {result}")
    return code


def _pass_output(outcome: Outcome) -> None:
    """Write the kept bytes as they are, as docker does, then say what was cut."""
    for name, stream, target in (
        ("stdout", outcome.stdout, sys.stdout.buffer),
        ("stderr", outcome.stderr, sys.stderr.buffer),
    ):
        _write(stream, target)
        if stream.truncated:
            note(
                f"{name} was cut: {format_bytes(len(stream.bytes))} of {format_bytes(stream.total_bytes)} are kept"
                " (see --max-output, --keep)"
            )


def _write(stream: StreamOutput, target: BinaryIO) -> None:
    target.write(stream.bytes)
    target.flush()


@contextmanager
def _sigterm_raises() -> Generator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _watch_for_workers(fleet: Fleet) -> Generator[None]:
    """Say it if, after a while, no worker answers: the wait may be a long one."""

    def look() -> None:
        try:
            has_workers = fleet.has_workers(1.0)
        except FleetError:
            return  # the wait itself tells of that
        if not has_workers and not ended.is_set():
            note(
                f"no worker is listening on {fleet.settings.redis_address}: the job is queued and starts when one does"
                " (sandfleet-worker start)"
            )

    ended = threading.Event()
    timer = threading.Timer(PATIENCE_SECONDS, look)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        ended.set()
        timer.cancel()


def read_stdin(max_bytes: int) -> bytes:
    """Read stdin to its end.

    Raises:
        SpecTooLarge: it has more than `max_bytes`.
    """
    raw = sys.stdin.buffer.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise SpecTooLarge.of(
            f"stdin has more than {format_bytes(max_bytes)} (SANDFLEET_MAX_SPEC_BYTES): put large inputs into the image"
        )
    return raw


def read_cores(cores: float) -> int:
    """Return cores as a CPU quota: microseconds in each 100 ms.

    Raises:
        SpecInvalid: it is no number of cores.
    """
    if not math.isfinite(cores):
        raise SpecInvalid.of("--cpu: must be a number of cores, such as 0.5")
    quota = round(cores * CPU_PERIOD_MICROSECONDS)
    # So little that it rounds to 0, which would be the host's ceiling.
    return quota or (1 if cores > 0 else 0)


def read_env(items: Sequence[str]) -> list[str]:
    """Return ``KEY=VALUE`` items; a bare ``KEY`` takes its value from our own environment.

    Raises:
        SpecInvalid: it is not set there.
    """
    missing = [item for item in items if "=" not in item and item not in os.environ]
    if missing:
        raise SpecInvalid.of(f"--env {' '.join(missing)}: not set in this environment; give KEY=VALUE")
    return [item if "=" in item else f"{item}={os.environ[item]}" for item in items]


def read_labels(items: Sequence[str], option: str = "--label") -> dict[str, str]:
    """Return ``key=value`` items as a dict.

    Raises:
        SpecInvalid: an item has no ``=``.
    """
    faulty = [item for item in items if "=" not in item]
    if faulty:
        raise SpecInvalid.of(f"{option} {' '.join(faulty)}: must be key=value")
    return dict(item.split("=", 1) for item in items)
