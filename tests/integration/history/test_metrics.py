"""The history's metrics move: what was lost, and how large its file is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.ended_run import STREAM
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_web.metrics.fleet_metrics import render_fleet_metrics
from scrape import Scraped

if TYPE_CHECKING:
    from past import Past


def read(past: Past) -> Scraped:
    return Scraped(render_fleet_metrics(past.fleet.state.read_summary(), past.history.status()).decode())


def test_what_the_history_lost_is_a_counter(past: Past) -> None:
    past.add_runs(10)
    past.write_all()
    before = read(past)
    assert before.value("sandfleet_history_lost_total") == 0
    assert before.value("sandfleet_history_bytes") > 0
    assert "sandfleet_history_lag_seconds" in before.names

    past.add_runs(100)
    past.redis.xtrim(f"{KEY_PREFIX}{STREAM}", maxlen=30, approximate=False)
    past.write_all()
    assert read(past).value("sandfleet_history_lost_total") == 70
