"""`sandfleet-worker start` with several processes where it cannot start."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from waiting import wait_until

if TYPE_CHECKING:
    from stage import Stage

TWO: dict[str, Any] = {"SANDFLEET_PROCESSES": "2", "SANDFLEET_WARM__SIZE": "0"}


def test_a_preflight_that_fails_is_told_once_and_no_process_is_started(stage: Stage) -> None:
    nowhere = f"unix://{stage.folder}/nowhere.sock?db=0"
    worker = stage.start(**TWO, SANDFLEET_REDIS_URL=nowhere)

    assert worker.process.wait(60) == 1
    assert worker.log.count("error: redis: ") == 1, worker.log
    assert "action=process_started" not in worker.log


def test_a_process_whose_port_is_taken_ends_the_start_with_the_reason(stage: Stage) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        worker = stage.start(**TWO, SANDFLEET_METRICS__PORT=str(port - 1))

        assert worker.process.wait(60) == 1
    log = worker.log
    assert f"error: metrics at 127.0.0.1:{port}: Address already in use" in log
    assert log.count("action=preflight_passed") == 1, "the preflight is done once for all"
    assert "process 2 does not start: the others end, too action=processes_refused" in log


def test_ports_beyond_the_last_are_refused_before_anything_starts(stage: Stage) -> None:
    worker = stage.start(**TWO, SANDFLEET_METRICS__PORT="65535")

    assert worker.process.wait(60) == 1
    assert "error: SANDFLEET_METRICS__PORT: 65535 is too high: each of 2 processes takes a port" in worker.log
    assert "action=process_started" not in worker.log


def test_a_stop_while_the_processes_start_leaves_nothing(stage: Stage) -> None:
    for pause in (0.8, 1.2, 1.6):
        worker = stage.start(**TWO)
        wait_until(lambda: worker.log.count("action=process_started") == 2, 60, "both are started")  # noqa: B023
        time.sleep(pause)
        worker.process.terminate()

        assert worker.process.wait(60) == 0, worker.log
        assert stage.find_leftovers() == [], pause
