"""``sandfleet run``: run one job; its output and exit code become those of the command."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import RequestError
from sandfleet_config.units import format_bytes

from sandfleet.cli.artifacts import SaveOptions, Saver, tell_lost
from sandfleet.cli.exits import INTERRUPTED, OUR_FAILURE, TERMINATED, exit_code, is_own_exit
from sandfleet.cli.files import LocalFiles, read_stdin
from sandfleet.cli.hints import describe_refusal, name_options
from sandfleet.cli.live import follow_job
from sandfleet.cli.show import explain, note
from sandfleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import FrameType
    from typing import BinaryIO

    from sandfleet_config.outcome import Outcome, StreamOutput

    from sandfleet.files.artifacts import JobArtifacts
    from sandfleet.fleet import Fleet
    from sandfleet.job import Job

WAIT_NOTE_SECONDS = 2.0
"""A job that is still queued by then may wait for long: say why."""
START_ONE = " (sandfleet-worker start)"


class Terminated(BaseException):
    """SIGTERM was received: the job is cancelled, as by Ctrl-C.

    A `BaseException`, as `KeyboardInterrupt` is, so that no ``except Exception`` catches it.
    """


@dataclass(frozen=True)
class RunFiles:
    """The options of ``sandfleet run`` for local files: what it sends, and where it saves."""

    files: Sequence[str] = ()
    artifacts: Sequence[str] = ()
    stdin_file: str | None = None
    is_stdin_sent: bool = False
    save: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        if self.is_stdin_sent and self.stdin_file is not None:
            raise typer.BadParameter("give one of --stdin and --stdin-file", param_hint="--stdin-file")
        if self.save is not None and not self.artifacts:
            raise typer.BadParameter("needs --artifact: the files to save", param_hint="--save")


def run_job(
    fleet: Fleet, fields: dict[str, Any], local: RunFiles = RunFiles(), *, queue: str | None = None, is_json: bool
) -> int:
    """Submit the spec `fields` with the files of `local`, wait, print output, save artifacts.

    Return the exit code. Ctrl-C and SIGTERM cancel the job.
    """
    saver = Saver(fleet, SaveOptions(local.save))  # made first: a folder that cannot be made stops the submit
    try:
        job = fleet.submit({**fields, **read_files(fleet, local)}, queue=queue)
    except RequestError as error:
        note(describe_refusal(error))
        return OUR_FAILURE
    is_live = not is_json and bool(fields.get("output", {}).get("live"))
    if not fields["command"]:
        note("no command was given: the image's own one runs")
    try:
        with sigterm_raises(), note_wait(fleet, job.id):
            import_module("sandfleet.channel.stored_result")  # needed at the end: 20 ms while the job runs
            outcome = follow_job(job) if is_live else job.outcome()
    except KeyboardInterrupt:
        return _cancel(job, INTERRUPTED)
    except Terminated:
        return _cancel(job, TERMINATED)
    except FleetError:
        note(f"the job goes on as far as it can; see it again with: sandfleet show {job.id}")
        raise
    print_outcome(fleet, outcome, fields["image"], is_json=is_json, is_printed=is_live)
    is_complete = finish_artifacts(fleet.artifacts_of(outcome), saver if local.save is not None else None)
    return exit_code(outcome) or (0 if is_complete else OUR_FAILURE)


def read_files(fleet: Fleet, local: RunFiles) -> dict[str, Any]:
    """Return the fields of the spec that `local` asks for; upload what is large."""
    fields: dict[str, Any] = {}
    sent = LocalFiles()
    if local.files:
        fields["files"] = sent.add_options(local.files)
    if local.artifacts:
        fields["artifacts"] = list(local.artifacts)
    if local.stdin_file is not None:
        fields["stdin"] = sent.add_stdin(Path(local.stdin_file))
    if local.is_stdin_sent:
        fields["stdin"] = read_stdin(fleet)
    sent.upload(fleet)
    return fields


def finish_artifacts(artifacts: JobArtifacts, saver: Saver | None) -> bool:
    """Save artifacts, or say how to; return False if some were to be saved and were not."""
    if saver is not None:
        return saver.save(artifacts, is_batch=False)
    tell_lost(artifacts)
    if artifacts:
        note(f"{len(artifacts)} artifacts; to save them: sandfleet artifacts {artifacts.job_id} --save FOLDER")
    return True


def print_outcome(
    fleet: Fleet, outcome: Outcome, image: str, *, is_json: bool = False, is_printed: bool = False
) -> None:
    """Print a job's output, or its outcome as JSON; then its code, if the exit is not its own."""
    if is_json:
        print(json.dumps(outcome.to_json(), indent=2))  # ASCII only: safe on a terminal
    elif not is_printed:
        _print_output(fleet, outcome)
    if not is_own_exit(outcome):
        # The image of `sandfleet run NAME` is not NAME, as users of docker may expect.
        hint = f" ({image}; --image NAME takes another)" if outcome.code is ErrorCode.COMMAND_NOT_FOUND else ""
        note(name_options(explain(outcome)) + hint)


def _cancel(job: Job, code: int) -> int:
    result = job.cancel()
    note(f"CANCELLED: job {job.id}: {result}")
    return code


def _print_output(fleet: Fleet, outcome: Outcome) -> None:
    """Write the bytes unchanged, as docker does, then say how much was cut."""
    for name, stream, target in (
        ("stdout", outcome.stdout, sys.stdout.buffer),
        ("stderr", outcome.stderr, sys.stderr.buffer),
    ):
        written = _write_stored(fleet, name, stream, target) or _write(stream, target)
        if stream.truncated and written < stream.total_bytes:
            note(
                f"{name} was cut: {format_bytes(written)} of {format_bytes(stream.total_bytes)} are kept"
                " (see --max-output, --keep, --store-output)"
            )


def _write_stored(fleet: Fleet, name: str, stream: StreamOutput, target: BinaryIO) -> int:
    """Write what the store has of a stream; return the number of bytes, 0 if it has none."""
    if stream.stored is None:
        return 0
    try:
        with fleet.download(stream.stored) as file:
            shutil.copyfileobj(file, target)
    except FleetError as error:  # nothing was written: a download is verified first
        note(f"{name}: {error}")
        return 0
    target.flush()
    return stream.stored.size


def _write(stream: StreamOutput, target: BinaryIO) -> int:
    """Write what the outcome has of a stream; return the number of bytes."""
    target.write(stream.bytes)
    target.flush()
    return len(stream.bytes)


@contextmanager
def sigterm_raises() -> Generator[None]:
    """Raise `Terminated` at SIGTERM."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def note_wait(fleet: Fleet, job_id: str | None = None) -> Generator[None]:
    """Print one note if the job is still queued after `WAIT_NOTE_SECONDS`: its id, and why it waits.

    Without `job_id`, for jobs that are not known yet, only whether any worker answers.
    """

    def check() -> None:
        try:
            why = _find_no_workers(fleet) if job_id is None else _explain_wait(fleet, job_id)
        except FleetError:
            return  # the wait raises it, too
        if why and not ended.is_set():
            note(why)

    ended = threading.Event()
    timer = threading.Timer(WAIT_NOTE_SECONDS, check)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        ended.set()
        timer.cancel()


def _find_no_workers(fleet: Fleet) -> str:
    """Say that no worker answers; empty if one does."""
    if fleet.has_workers(1.0):
        return ""
    return f"{_no_worker(fleet)}: the job is queued and starts when one does{START_ONE}"


def _explain_wait(fleet: Fleet, job_id: str) -> str:
    """Say why a queued job waits; empty for any other, and if it waits for a free slot only."""
    from sandfleet.overview.job_view import BUSY

    view = fleet.view(job_id, counts=False)
    if view.facts.state != "queued":
        return ""
    if view.queued is not None and not view.queued.workers:
        return f"job {job_id} waits: {_no_worker(fleet)}; it starts when one does{START_ONE}"
    why = view.explain_wait()
    return f"job {job_id} waits: {why}" if why not in {"", BUSY} else ""


def _no_worker(fleet: Fleet) -> str:
    return f"no worker is listening on {fleet.settings.redis_address}"
