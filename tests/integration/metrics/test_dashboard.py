"""The dashboard is what its script makes, its queries can be read, and each metric in it exists."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from alert_rules import DASHBOARD, NAME, list_expressions, run_promtool
from dashboard import new_dashboard
from sandfleet_config.metric_names import METRICS

if TYPE_CHECKING:
    from pathlib import Path

FOUND = json.loads(DASHBOARD.read_text())
SUFFIX = re.compile(r"_(bucket|count|sum)$")
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$queue": ".*", "$host": ".*"}


def test_the_dashboard_is_what_its_script_makes() -> None:
    assert DASHBOARD.read_text() == new_dashboard(), "run: python scripts/dashboard.py --write"


def test_each_metric_in_it_exists_with_these_labels() -> None:
    named = set[str]()
    for expression in list_expressions(FOUND):
        for name in NAME.findall(expression):
            base = name if name in METRICS else SUFFIX.sub("", name)
            assert base in METRICS, expression
            named.add(base)
    assert len(named) > 20


def test_each_query_can_be_read(tmp_path: Path) -> None:
    queries = [expression for expression in list_expressions(FOUND) if not expression.startswith("label_values")]
    for variable, value in VARIABLES.items():
        queries = [query.replace(variable, value) for query in queries]
    assert not any("$" in query for query in queries)
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in run_promtool("check", "rules", str(path))


def test_each_panel_links_to_a_page_and_none_overlaps() -> None:
    taken = set[tuple[int, int]]()
    for panel in FOUND["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert [link["url"].startswith("${pages}/fleet/") for link in panel["links"]] == [True]
    assert len({panel["id"] for panel in FOUND["panels"]}) == len(FOUND["panels"])
