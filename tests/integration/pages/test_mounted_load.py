"""Pages in a Flower that is busy with Celery's events: the loop's lag is told, and no ended run is lost."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from flower_pages import running_flower
from past import new_summary
from sandfleet_config.queues import KEY_PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    from flower_pages import Flower
    from stage import Stage, Stock

RATE: Final = int(os.environ.get("TEST_MOUNTED_RATE", "300"))
SECONDS: Final = int(os.environ.get("TEST_MOUNTED_SECONDS", "5"))
JOBS: Final = RATE * SECONDS
STORE_SECONDS: Final = 60.0
LATE_SECONDS: Final = 0.6
"""The lag of one in ten timers at which the test goes on; the pages tell it from 0.5 s on."""
ENDED: Final = """
for at = 2, #ARGV do
  redis.call('XADD', ARGV[1] .. 'ended_runs', '*', 'n', redis.call('INCR', ARGV[1] .. 'ended_runs:last'), 'run', ARGV[at])
end
"""


def end_jobs(stock: Stock) -> float:
    """End jobs at the rate, with the three events and the stream's entry of each; return the seconds it took."""
    began = time.monotonic()
    with (
        stock.app.connection() as connection,
        stock.app.events.Dispatcher(connection, hostname="celery@load") as events,
    ):
        for tenth in range(SECONDS * 10):
            ids = [f"load-{number}" for number in range(tenth * RATE // 10, (tenth + 1) * RATE // 10)]
            for job_id in ids:
                fields: dict[str, Any] = {"uuid": job_id, "name": "sandfleet.run", "args": "[]", "kwargs": "{}"}
                events.send("task-received", **fields)
                events.send("task-started", uuid=job_id)
                events.send("task-succeeded", uuid=job_id, result="OK", runtime=0.1)
            stock.redis.eval(ENDED, 0, KEY_PREFIX, *map(new_summary, ids))
            time.sleep(max(0.0, began + (tenth + 1) / 10 - time.monotonic()))
    return time.monotonic() - began


def forget_runs(stock: Stock) -> None:
    for key in ("ended_runs", "ended_runs:last"):
        stock.redis.delete(f"{KEY_PREFIX}{key}")


def read_gauge(flower: Flower, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", flower.get("/fleet/metrics"), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_events_of_300_jobs_a_second_cost_no_ended_run_and_the_lag_is_told(
    module_stage: Stage, stock: Stock, tmp_path: Path
) -> None:
    forget_runs(stock)  # of tests before
    settings = {"SANDFLEET_WEB__HISTORY__FILE": str(tmp_path / "history.db")}
    with running_flower(module_stage, **settings) as flower:
        flower.get("/fleet/")  # from now on the lag is measured
        took = end_jobs(stock)
        overview = flower.get("/fleet/")
        lag = read_gauge(flower, "sandfleet_web_loop_lag_seconds")
        deadline = time.monotonic() + STORE_SECONDS
        while (state := flower.get_json("/fleet/api/v1/history"))["number"] < JOBS and time.monotonic() < deadline:
            time.sleep(0.5)

        print(f"{JOBS / took:.0f} jobs/s; the loop is {lag * 1000:.0f} ms late")  # noqa: T201  for `pytest -s`
        assert (state["number"], state["rows"], state["lost"], state["skipped"]) == (JOBS, JOBS, 0, 0)
        if not 0.4 < lag < 0.6:  # between the two reads it may have passed the bound
            assert ("its loop is" in overview) is (lag > 0.5), "above half a second it says so"
        above = max(LATE_SECONDS, lag)
        assert make_late(flower, above) > above, "a loop that is really late is told"
        assert "its loop is" in flower.get("/fleet/")
    forget_runs(stock)


def make_late(flower: Flower, above: float) -> float:
    """Stop the process again and again, longer each time, until the gauge is above; return what it says."""
    deadline, lag, seconds = time.monotonic() + 60, 0.0, 1.0
    while lag <= above and time.monotonic() < deadline:
        os.kill(flower.process_id, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(flower.process_id, signal.SIGCONT)
        time.sleep(0.3)
        seconds *= 1.2
        lag = read_gauge(flower, "sandfleet_web_loop_lag_seconds")
    return lag
