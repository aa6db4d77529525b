"""Print the table of metrics from `sandfleet_config.metric_names`, or put it into its page.

The page is written with --write.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from generated import print_or_write, replace_part
from sandfleet_config.metric_names import FLEET_METRICS, WORKER_METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandfleet_config.metric_names import Metric

PAGE = Path(__file__).parent.parent / "docs/how-to/metrics-and-alerts.md"
BEGIN, END = "<!-- metrics:begin -->", "<!-- metrics:end -->"


def new_table() -> str:
    """Return both tables as Markdown."""
    return "\n".join(
        [*_new_rows("Of each worker", WORKER_METRICS), "", *_new_rows("Of the fleet, from one place", FLEET_METRICS)]
    )


def _new_rows(title: str, metrics: Mapping[str, Metric]) -> Iterator[str]:
    yield f"**{title}**"
    yield ""
    yield "| metric | type | labels | what it is |"
    yield "|---|---|---|---|"
    for name, (kind, meaning, labels) in metrics.items():
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"


def rewrite(text: str) -> str:
    """Return the page's text with the tables of today."""
    return replace_part(text, BEGIN, END, new_table())


if __name__ == "__main__":
    print_or_write(PAGE, new_table, rewrite)
