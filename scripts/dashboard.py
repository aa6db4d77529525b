"""Make `deploy/grafana/sandfleet.json`, the dashboard of a fleet. ``--write`` writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
DASHBOARD: Final = ROOT / "deploy/grafana/sandfleet.json"
WIDTH: Final = 24
"""Columns of Grafana's grid."""
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
RANGE: Final = "since:${__from:date:iso}%20until:${__to:date:iso}"
LINKS: Final = {
    "overview": "/fleet/",
    "queues": "/fleet/queues",
    "hosts": "/fleet/hosts",
    "failures": "/fleet/failures?category=host",
    "jobs": f"/fleet/jobs?q={RANGE}",
    "host jobs": f"/fleet/jobs?q=category:host%20{RANGE}",
}
RATE: Final = "$__rate_interval"

Panel = tuple[str, str, str, str, tuple[tuple[str, str], ...]]
# Kind, title, unit, page that it links to, and its queries with their legends.
ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Is it well": (
        (
            *("stat", "Oldest job against its target", "percentunit", "queues"),
            (("max(sandfleet_queue_oldest_age_seconds / sandfleet_queue_age_target_seconds)", ""),),
        ),
        (
            *("stat", "Busy slots", "percentunit", "hosts"),
            (("max(sandfleet_fleet_slots_busy) / max(sandfleet_fleet_slots)", ""),),
        ),
        (
            *("stat", "Attempts that fail by our doing", "percentunit", "failures"),
            (
                (
                    (
                        f'sum(rate(sandfleet_attempts_ended_total{{category="host"}}[{RATE}]))'
                        f" / sum(rate(sandfleet_attempts_ended_total[{RATE}]))"
                    ),
                    "",
                ),
            ),
        ),
        (*("stat", "Redis memory", "percentunit", "overview"), (("max(sandfleet_redis_memory_used_ratio)", ""),)),
        (*("stat", "History behind", "s", "overview"), (("max(sandfleet_history_lag_seconds)", ""),)),
        (*("stat", "Dead letters", "short", "failures"), (("max(sandfleet_dead_letters)", ""),)),
    ),
    "Queues": (
        (
            *("timeseries", "Age of the oldest job", "s", "queues"),
            (('sandfleet_queue_oldest_age_seconds{queue=~"$queue"}', "{{queue}}"),),
        ),
        (
            *("timeseries", "Waiting jobs", "short", "queues"),
            (
                ('sandfleet_queue_jobs{queue=~"$queue"}', "{{queue}}"),
                ("max(sandfleet_jobs_delayed)", "delayed"),
                ("max(sandfleet_jobs_parked)", "parked"),
            ),
        ),
        (
            *("timeseries", "Started and ended", "ops", "jobs"),
            (
                (f'sum(rate(sandfleet_jobs_started_total{{queue=~"$queue"}}[{RATE}]))', "started"),
                (f'sum(rate(sandfleet_jobs_ended_total{{queue=~"$queue"}}[{RATE}]))', "ended"),
            ),
        ),
    ),
    "Ends": (
        (
            *("stacked", "Ends by category", "ops", "jobs"),
            ((f'sum by (category) (rate(sandfleet_jobs_ended_total{{queue=~"$queue"}}[{RATE}]))', "{{category}}"),),
        ),
        (
            *("table", "Ends by code", "short", "jobs"),
            (('sum by (code) (increase(sandfleet_jobs_ended_total{queue=~"$queue"}[$__range]))', "{{code}}"),),
        ),
    ),
    "Time": (
        (
            *("timeseries", "Seconds in the queue", "s", "queues"),
            tuple(
                (
                    (
                        f"histogram_quantile({share}, sum by (le)"
                        f' (rate(sandfleet_job_queue_seconds_bucket{{queue=~"$queue"}}[{RATE}])))'
                    ),
                    f"p{share * 100:g}",
                )
                for share in (0.5, 0.95, 0.99)
            ),
        ),
        (
            *("heatmap", "Boots of sandboxes that jobs waited for", "s", "hosts"),
            ((f'sum by (le) (increase(sandfleet_sandbox_boot_seconds_bucket{{kind="cold"}}[{RATE}]))', "{{le}}"),),
        ),
        (
            *("timeseries", "Steps of a job, mean", "s", "jobs"),
            (
                (
                    (
                        f"sum by (step) (rate(sandfleet_job_step_seconds_sum[{RATE}]))"
                        f" / sum by (step) (rate(sandfleet_job_step_seconds_count[{RATE}]))"
                    ),
                    "{{step}}",
                ),
            ),
        ),
        (
            *("timeseries", "Programs that find a spare", "percentunit", "hosts"),
            (
                (
                    (
                        f'sum(rate(sandfleet_warm_takes_total{{result="hit"}}[{RATE}]))'
                        f" / sum(rate(sandfleet_warm_takes_total[{RATE}]))"
                    ),
                    "hit",
                ),
            ),
        ),
    ),
    "Hosts": (
        (
            *("timeseries", "Busy slots of a host", "short", "hosts"),
            (('max by (instance) (sandfleet_host_slots_busy{instance=~"$host"})', "{{instance}}"),),
        ),
        (
            *("timeseries", "Attempts that fail by the host's doing", "percentunit", "host jobs"),
            (
                (
                    (
                        f'sum by (host) (rate(sandfleet_attempts_ended_total{{category="host"}}[{RATE}]))'
                        f" / sum by (host) (rate(sandfleet_attempts_ended_total[{RATE}]))"
                    ),
                    "{{host}}",
                ),
            ),
        ),
        (
            *("timeseries", "What is left of leases", "s", "hosts"),
            (('min by (instance) (sandfleet_lease_margin_seconds{instance=~"$host"})', "{{instance}}"),),
        ),
        (
            *("timeseries", "Dead workers taken over", "short", "hosts"),
            ((f"sum(increase(sandfleet_takeovers_total[{RATE}]))", "taken over"),),
        ),
    ),
    "Redis and watching": (
        (
            *("timeseries", "Calls of scripts, mean", "s", "overview"),
            (
                (
                    (
                        f"sum by (script) (rate(sandfleet_redis_call_seconds_sum[{RATE}]))"
                        f" / sum by (script) (rate(sandfleet_redis_call_seconds_count[{RATE}]))"
                    ),
                    "{{script}}",
                ),
            ),
        ),
        (
            *("timeseries", "Calls that failed", "ops", "overview"),
            ((f"sum(rate(sandfleet_redis_errors_total[{RATE}]))", "errors"),),
        ),
        (
            *("timeseries", "The pages' loop is late by", "s", "overview"),
            (("sandfleet_web_loop_lag_seconds", "{{instance}}"),),
        ),
        (*("timeseries", "History file", "bytes", "overview"), (("max(sandfleet_history_bytes)", "size"),)),
    ),
}


def new_panel(number: int, panel: Panel, place: tuple[int, int, int, int]) -> dict[str, Any]:
    """Return a panel at `place`: column, line, width, height."""
    kind, title, unit, page, queries = panel
    x, y, width, height = place
    is_table = kind == "table"
    found: dict[str, Any] = {
        "id": number,
        "type": "timeseries" if kind == "stacked" else kind,
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "links": [{"title": "Fleet page", "url": f"${{pages}}{LINKS[page]}", "targetBlank": True}],
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": "ABCDEFGH"[place_of_query],
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
                **({"instant": True, "format": "table"} if is_table else {}),
                **({"format": "heatmap"} if kind == "heatmap" else {}),
            }
            for place_of_query, (expression, legend) in enumerate(queries)
        ],
    }
    if kind == "stacked":
        found["fieldConfig"]["defaults"]["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    return found


def new_panels() -> list[dict[str, Any]]:
    """Return the panels, each row under its title."""
    panels: list[dict[str, Any]] = []
    line = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": line, "w": WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place})
        line, height, width = line + 1, 4 if row[0][0] == "stat" else 8, WIDTH // len(row)
        for column, panel in enumerate(row):
            panels.append(new_panel(len(panels) + 1, panel, (column * width, line, width, height)))
        line += height
    return panels


def new_variables() -> list[dict[str, Any]]:
    """Return the variables: the data source, the address of the pages, queues and hosts."""
    every = {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    queries = {
        "queue": "label_values(sandfleet_queue_jobs, queue)",
        "host": "label_values(sandfleet_lease_margin_seconds, instance)",
    }
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {"name": "pages", "type": "textbox", "label": "Address of the pages", "query": "http://127.0.0.1:5555"},
        *(
            {
                "name": name,
                "type": "query",
                "label": name.capitalize(),
                "datasource": SOURCE,
                "refresh": 2,
                "query": {"query": query, "refId": name},
                "sort": 1,
                **every,
            }
            for name, query in queries.items()
        ),
    ]


def new_dashboard() -> str:
    """Return the dashboard as JSON, as Grafana imports it."""
    dashboard = {
        "uid": "sandfleet",
        "title": "Sandfleet",
        "tags": ["sandfleet"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": new_variables()},
        "links": [{"title": "Fleet", "type": "link", "url": "${pages}/fleet/", "targetBlank": True}],
        "panels": new_panels(),
    }
    return json.dumps(dashboard, indent=2) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        DASHBOARD.write_text(new_dashboard())
    elif DASHBOARD.read_text() != new_dashboard():
        sys.exit(f"{DASHBOARD} is not what this makes: run it with --write")
