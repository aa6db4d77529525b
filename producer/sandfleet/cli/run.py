"""``sandfleet run``: run one job; its output and exit code become those of the command."""

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
from sandfleet_config.units import CPU_PERIOD_MICROSECONDS, format_bytes

from sandfleet.cli.exits import INTERRUPTED, OUR_FAILURE, TERMINATED, exit_code, is_own_exit
from sandfleet.cli.hints import describe_refusal
from sandfleet.cli.show import explain, note
from sandfleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import FrameType
    from typing import BinaryIO

    from sandfleet_config.outcome import Outcome, StreamOutput

    from sandfleet.fleet import Fleet
    from sandfleet.job import Job

WORKER_ANSWER_SECONDS = 2.0
"""If the job has not ended by then, ask whether any worker is there."""


class Terminated(BaseException):
    """SIGTERM was received: the job is cancelled, as by Ctrl-C.

    A `BaseException`, as `KeyboardInterrupt` is, so that no ``except Exception`` catches it.
    """


def run_job(
    fleet: Fleet, fields: dict[str, Any], *, queue: str | None = None, is_stdin_sent: bool = False, is_json: bool
) -> int:
    """Submit the spec `fields`, wait, print its output.

    Return the exit code. Ctrl-C and SIGTERM cancel the job.
    """
    if is_stdin_sent:
        fields = {**fields, "stdin": read_stdin(fleet.settings.max_spec_bytes)}
    try:
        job = fleet.submit(fields, queue=queue)
    except RequestError as error:
        note(describe_refusal(error))
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
    _print_outcome(outcome, fields["image"], is_json=is_json)
    return exit_code(outcome)


def _print_outcome(outcome: Outcome, image: str, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(outcome.to_json(), indent=2))  # ASCII only: safe on a terminal
    else:
        _print_output(outcome)
    if not is_own_exit(outcome):
        # The image of `sandfleet run NAME` is not NAME, as users of docker may expect.
        hint = f" ({image}; --image NAME takes another)" if outcome.code is ErrorCode.COMMAND_NOT_FOUND else ""
        note(explain(outcome) + hint)


def _cancel(job: Job, code: int) -> int:
    result = job.cancel()
    note(f"CANCELLED: job {job.id}: {result}")
    return code


def _print_output(outcome: Outcome) -> None:
    """Write the kept bytes unchanged, as docker does, then say how much was cut."""
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
    """Print a note if no worker answers after `WORKER_ANSWER_SECONDS`: the wait may be long."""

    def check() -> None:
        try:
            has_workers = fleet.has_workers(1.0)
        except FleetError:
            return  # the wait raises it, too
        if not has_workers and not ended.is_set():
            note(
                f"no worker is listening on {fleet.settings.redis_address}: the job is queued and starts when one does"
                " (sandfleet-worker start)"
            )

    ended = threading.Event()
    timer = threading.Timer(WORKER_ANSWER_SECONDS, check)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        ended.set()
        timer.cancel()


def drop_unset(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None: the spec's defaults hold for the others."""
    return {name: value for name, value in fields.items() if value is not None}


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
        SpecInvalid: it is not a number of cores.
    """
    if not math.isfinite(cores):
        raise SpecInvalid.of("--cpu: must be a number of cores, such as 0.5")
    quota = round(cores * CPU_PERIOD_MICROSECONDS)
    # Not 0 for a small number: 0 is the host's ceiling.
    return quota or (1 if cores > 0 else 0)


def read_env(items: Sequence[str]) -> list[str]:
    """Return ``KEY=VALUE`` items; ``KEY`` alone gets its value from this environment.

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
