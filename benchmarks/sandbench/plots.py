"""The pictures of a report: PNG files in a folder. matplotlib is imported only here."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from sandbench.goals import judge
from sandbench.programs import TRUE

if TYPE_CHECKING:
    from pathlib import Path

    from sandbench.figures import Figures

MET, MISSED, PLAIN = "#2a7f62", "#c8553d", "#4a6fa5"
MOST_SCORE = 2.0
"""A bar longer than that is cut: a goal met ten times over would flatten the others."""
DPI = 110


def write_plots(figures: Figures, folder: Path) -> list[Path]:
    """Draw what was measured into `folder`."""
    mpl.use("Agg")
    drawn = {
        "goals": _draw_goals(figures),
        "latency": _draw_latency(figures),
        "throughput": _draw_throughput(figures),
        "growth": _draw_growth(figures),
    }
    paths = []
    for name, picture in drawn.items():
        if picture is not None:
            paths.append(folder / f"{name}.png")
            # Without the library's version: the same figures give the same file.
            picture.savefig(paths[-1], dpi=DPI, metadata={"Software": None})
    return paths


def _new_figure(width: float, height: float) -> tuple[Any, Any]:
    picture: Any = Figure(figsize=(width, height), layout="constrained")
    axes = picture.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return picture, axes


def _draw_goals(figures: Figures) -> Any:
    goals = judge(figures)[::-1]
    if not goals:
        return None
    picture, axes = _new_figure(10, 0.45 * len(goals) + 1)
    names = [goal.what.replace("`", "") for goal in goals]
    scores = [min(goal.score, MOST_SCORE) for goal in goals]
    bars = axes.barh(names, scores, color=[MET if goal.is_met else MISSED for goal in goals])
    labels = [f"{goal.found} / {goal.wanted}".replace("`", "") for goal in goals]
    # On white, for the line of the goal runs through some of them.
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.axvline(1, color="black", linewidth=1)
    axes.bar_label(bars, labels, padding=4, fontsize=8, bbox=background)
    axes.set(xlim=(0, MOST_SCORE * 1.35), xlabel="share of the goal reached (line: the goal)")
    axes.tick_params(axis="y", labelsize=8)
    return picture


def _draw_latency(figures: Figures) -> Any:
    found = figures.find_latency(TRUE.name)
    if found is None:
        return None
    picture, axes = _new_figure(9, 0.5 * len(found.ms) + 1.2)
    names = list(found.ms)[::-1]
    axes.boxplot([found.ms[name] for name in names], orientation="horizontal", tick_labels=names, whis=(5, 95), sym=".")
    axes.set(
        xlim=(0, None), xlabel=f"{found.program}: ms from asking to the end (box: middle half, whiskers: 5 to 95 %)"
    )
    return picture


def _draw_throughput(figures: Figures) -> Any:
    items = [item for item in figures.throughput if item.program == TRUE.name]
    if not items:
        return None
    picture, axes = _new_figure(8, 4)
    for way in items[0].per_second:
        medians = [statistics.median(item.per_second[way]) for item in items]
        axes.plot([item.at_once for item in items], medians, marker="o", label=way)
    axes.set(ylim=(0, None), xlabel="jobs at once", ylabel=f"{TRUE.name}, jobs/s")
    axes.set_xscale("log", base=2)
    axes.set_xticks([item.at_once for item in items], [str(item.at_once) for item in items])
    axes.legend(frameon=False)
    return picture


def _draw_growth(figures: Figures) -> Any:
    if not figures.growth:
        return None
    picture: Any = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, kind in zip(picture.subplots(1, 2), ("queued", "workers"), strict=True):
        rows = [row for row in figures.growth if row.kind == kind]
        names = [f"{row.number:,}" for row in rows]
        axes.bar(names, [row.worker_cpu_us for row in rows], color=PLAIN, label="worker")
        below = [row.worker_cpu_us for row in rows]
        axes.bar(names, [row.redis_cpu_us for row in rows], bottom=below, color=MISSED, label="Redis")
        axes.set(xlabel=kind, ylabel="CPU, µs a job")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return picture
