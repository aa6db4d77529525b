"""The alert rules and the dashboard in `deploy/`, and promtool, which judges them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yml"
DASHBOARD = ROOT / "deploy/grafana/sandfleet.json"
PROMETHEUS = "/usr/local/lib/sandfleet/prometheus"
NAME = re.compile(r"\bsandfleet_[a-z_]+\b")


def find_prometheus(name: str) -> str:
    """Return where `name`, prometheus or promtool, is; as `find_binary`."""
    found = shutil.which(f"{PROMETHEUS}/{name}") or shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed: scripts/setup.sh takes it")
    return found


def read_rules() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def list_expressions(dashboard: dict[str, Any]) -> list[str]:
    """Return the queries of all panels and variables."""
    panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", []))]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return queries + [item["query"]["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"]


def run_promtool(*words: str) -> str:
    done = subprocess.run(
        [find_prometheus("promtool"), *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Case:
    """Series by the minute, in promtool's notation, and how many alerts of a name fire then."""

    alert: str
    series: dict[str, str]
    minutes: int
    firing: int
    why: str = ""


def judge(cases: list[Case], folder: Path) -> None:
    """Have promtool evaluate the rules over the cases' series; fail if another number fires."""
    tests = [
        {
            "name": f"{case.alert} {case.why}",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})',
                    "eval_time": f"{case.minutes}m",
                    "exp_samples": [{"labels": "{}", "value": case.firing}] if case.firing else [],
                }
            ],
        }
        for case in cases
    ]
    path = folder / "rules_test.yml"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    run_promtool("test", "rules", str(path))
