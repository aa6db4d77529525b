"""A worker that hangs or fails in one place from the moment a file exists.

Run `python stalling.py PLACE FILE start ...`. It is the worker's own program in every other way;
only its patience is shortened, so that a test need not wait for minutes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandfleet_worker import cli
from sandfleet_worker.celery_worker import consumer, steps
from sandfleet_worker.delivery import watchdog, worker_exit
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.queue_rotation import QueueRotation
from sandfleet_worker.delivery.slot_folder import SlotFolder
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.delivery.slot_folder import HeldFiles

STALL_SECONDS = 3.0
OVERDUE_SECONDS = 1.0
EXIT_SECONDS = 4.0
"""How long a worker that ends by itself may take beyond what its jobs may."""
HANGING_LABEL = "hang"


def hang_if(file: Path) -> None:
    if file.exists():
        threading.Event().wait()


def put(owner: Any, name: str, function: Any) -> None:
    setattr(owner, name, function)


def hang_in_rotation(file: Path) -> None:
    names = QueueRotation.names

    def hang(rotation: QueueRotation) -> list[str]:
        hang_if(file)
        return names(rotation)

    put(QueueRotation, "names", hang)


def hang_in_slots(file: Path) -> None:
    take = SlotFolder.take

    def hang(folder: SlotFolder, cap: int, names: list[str]) -> HeldFiles | None:
        hang_if(file)
        return take(folder, cap, names)

    put(SlotFolder, "take", hang)


def hang_in_loop(file: Path) -> None:
    register = steps.ClaimedTasks.register_with_event_loop

    def hang(step: Any, c: Any, hub: Any) -> None:
        register(step, c, hub)
        hub.call_repeatedly(0.1, hang_if, file)

    put(steps.ClaimedTasks, "register_with_event_loop", hang)


def hang_in_job(file: Path) -> None:
    execute = RunscRunner.execute

    def hang(runner: RunscRunner, limits: Any, **options: Any) -> Any:
        ending = execute(runner, limits, **options)
        if HANGING_LABEL in limits.spec.labels:
            hang_if(file)
        return ending

    put(RunscRunner, "execute", hang)


def hang_in_lease(file: Path) -> None:
    beat = Ledger.beat

    def hang(ledger: Ledger, *args: Any, **kwargs: Any) -> Any:
        hang_if(file)
        return beat(ledger, *args, **kwargs)

    put(Ledger, "beat", hang)


def block_stderr(file: Path) -> None:
    """Put a full pipe that nobody reads in the place of stderr once the file exists."""

    def wait() -> None:
        while not file.exists():
            time.sleep(0.05)
        _reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        os.dup2(writer, 2)

    threading.Thread(target=wait, daemon=True).start()


def fail_if(file: Path) -> None:
    if file.exists():
        raise KeyError("no such thing")


def fail_in(owner: Any, name: str) -> Callable[[Path], None]:
    function = getattr(owner, name)

    def install(file: Path) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            fail_if(file)
            return function(*args, **kwargs)

        put(owner, name, fail)

    return install


def wait_before_consumer(file: Path) -> None:
    """Let Celery's consumer begin only when the file exists."""
    start = steps.ClaimedTasks.start

    def wait(step: Any, c: Any) -> None:
        print("the consumer waits", file=sys.stderr, flush=True)  # noqa: T201
        while not file.exists():
            time.sleep(0.05)
        start(step, c)

    put(steps.ClaimedTasks, "start", wait)


PLACES = {
    "rotation": hang_in_rotation,
    "slots": hang_in_slots,
    "loop": hang_in_loop,
    "job": hang_in_job,
    "lease": hang_in_lease,
    "log": block_stderr,
    "failing claimer": fail_in(QueueRotation, "names"),
    "failing sweeper": fail_in(Ledger, "reap"),
    "failing lease": fail_in(Ledger, "beat"),
    "late consumer": wait_before_consumer,
}


def main() -> None:
    place, file = sys.argv[1], Path(sys.argv[2])
    del sys.argv[1:3]
    watchdog.STALL_SECONDS, watchdog.POLL_SECONDS = STALL_SECONDS, 0.2
    consumer.OVERDUE_SECONDS = OVERDUE_SECONDS
    worker_exit.RELEASE_SECONDS = worker_exit.MARGIN_SECONDS = EXIT_SECONDS / 2
    PLACES[place](file)
    cli.main()


if __name__ == "__main__":
    main()
