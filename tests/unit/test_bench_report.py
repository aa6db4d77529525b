from __future__ import annotations

from typing import Any

import pytest
from sandbench.figures import Figures
from sandbench.goals import judge
from sandbench.programs import DATA, PRINT, PYTHON
from sandbench.publish import DOCUMENTS, MARKED, ROOT, fill
from sandbench.scale import Capacity
from sandbench.stats import median_ratio, percentile, spread, summarize
from sandbench.tables import bar, render_blocks, table

MACHINE = {
    "date": "2026-01-02",
    "cpu": "a cpu",
    "cores": 2,
    "memory_gib": 8.0,
    "kernel": "6.1",
    "cgroup_version": 2,
    "runsc": "1",
    "redis": "7",
    "python": "3.11",
    "is_rcu_expedited": False,
    "load_at_start": 0.1,
    "commit": "abc",
}
PREPARED = "whole queue, prepared"
TRUE, BARE, COLD, WARM = "/bin/true", "bare runsc", "whole queue, cold", "whole queue, warm"


def new_figures(**parts: Any) -> Figures:
    return Figures.model_validate({"machine": MACHINE, "is_quick": False} | parts)


def new_growth(kind: str, number: int, cpu: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "number": number,
        "jobs": 100,
        "per_second": 500.0,
        "worker_cpu_us": cpu,
        "redis_cpu_us": 100.0,
        "redis_calls": 30.0,
    }


STORE = {
    "queued_bytes": 3000.0,
    "ended_bytes": 4000.0,
    "output_bytes": 60,
    "network_bytes": 9000.0,
    "submit_cpu_us": 20.0,
    "collect_cpu_us": 5.0,
}


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.95, 3.85)])
def test_a_percentile_lies_between_its_neighbours(share: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(expected)


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_summary_counts() -> None:
    found = summarize([float(value) for value in range(101)])
    assert (found.count, found.p50, found.p95, found.p99) == (101, 50.0, 95.0, 99.0)


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was ten times slower in the second round: for both of them.
    assert median_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 0.5
    with pytest.raises(ValueError, match="zip"):
        median_ratio([1.0], [1.0, 2.0])


def test_the_spread_is_a_share_of_the_median() -> None:
    assert spread([100.0] * 10) == 0.0
    assert spread([50.0, 100.0, 150.0]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("score", "cells", "percent"),
    [(0.0, 0, "0%"), (0.5, 5, "50%"), (0.99, 9, "99%"), (1.0, 10, "100%"), (7.0, 10, "700%")],
)
def test_only_a_goal_that_is_met_has_a_full_bar(score: float, cells: int, percent: str) -> None:
    text = bar(score)
    assert (text.count("█"), text.count("░")) == (cells, 10 - cells)
    assert text.endswith(percent)


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_the_warm_way_is_judged_where_there_is_one() -> None:
    slow = {"program": TRUE, "ms": {BARE: [100.0, 100.0], COLD: [120.0, 120.0]}}
    fast = {"program": TRUE, "ms": {**slow["ms"], WARM: [20.0, 20.0]}}  # type: ignore[dict-item]
    cold, warm = judge(new_figures(latency=[slow])), judge(new_figures(latency=[fast]))
    assert [goal.is_met for goal in cold] == [False, False]
    assert "no warm" in cold[0].reason
    assert [goal.is_met for goal in warm] == [True, True]
    assert warm[1].score == pytest.approx(5.0 / 4.0)


def test_throughput_is_judged_where_every_core_is_busy() -> None:
    idle = {"program": TRUE, "at_once": 1, "per_second": {BARE: [10.0], COLD: [1.0]}}
    busy = {"program": TRUE, "at_once": 4, "per_second": {BARE: [20.0], COLD: [26.0]}}
    for runsc, least in (("1", 1.35), ("release-20260905.0", 1.35), ("0.0~20240729.0", 1.4)):
        machine = {"machine": {**MACHINE, "runsc": runsc}}
        (goal,) = judge(new_figures(throughput=[idle, busy], **machine))
        assert goal.score == pytest.approx(1.3 / least)
        assert "4 at once" in goal.what


def test_recovery_is_judged_by_the_longest() -> None:
    (goal,) = judge(new_figures(recovery={"lease_seconds": 6.0, "seconds": [5.0, 14.0]}))
    assert goal.score == pytest.approx(0.5)


def test_growth_is_judged_by_cpu_a_job() -> None:
    rows = [new_growth("queued", 1000, 900.0), new_growth("queued", 100_000, 1900.0)]
    (goal,) = judge(new_figures(growth=rows))
    assert goal.score == pytest.approx(1.25 / 2.0)
    assert not goal.is_met


def test_a_missed_goal_says_why_and_a_met_one_does_not() -> None:
    text = render_blocks(new_figures(recovery={"lease_seconds": 6.0, "seconds": [14.0]}))["goals"]
    assert "missed" in text
    assert "Missed, why" in text
    assert "Missed, why" not in render_blocks(new_figures(recovery={"lease_seconds": 6.0, "seconds": [5.0]}))["goals"]


def test_what_was_not_measured_is_an_empty_block() -> None:
    blocks = render_blocks(new_figures(absent={"Tako VM": "no engine"}))
    assert {name for name, text in blocks.items() if text} == {"machine", "absent"}
    assert "2 cores" in blocks["machine"]
    assert blocks["absent"] == "- Tako VM: no engine"


def test_parts_are_added_to_a_run_of_the_same_code() -> None:
    growth = [new_growth("queued", 1000, 900.0)]
    first = new_figures(growth=growth, took_seconds=10.0, absent={"a": "b"})
    recovery = {"lease_seconds": 6.0, "seconds": [5.0]}
    both = first.joined(new_figures(recovery=recovery, took_seconds=5.0))
    assert (len(both.growth), both.took_seconds, both.absent) == (1, 15.0, {"a": "b"})
    assert both.recovery is not None
    other = Figures.model_validate({"machine": {**MACHINE, "commit": "def"}, "is_quick": False})
    with pytest.raises(ValueError, match="other code"):
        first.joined(other)


def test_a_noisy_machine_is_said() -> None:
    quiet = {"program": TRUE, "ms": {BARE: [100.0, 101.0, 102.0], COLD: [1.0, 1.0, 1.0]}}
    noisy = {"program": TRUE, "ms": {BARE: [100.0, 200.0, 400.0], COLD: [1.0, 1.0, 1.0]}}
    assert "noisy" not in render_blocks(new_figures(latency=[quiet]))["machine"]
    assert "noisy" in render_blocks(new_figures(latency=[noisy]))["machine"]


def test_workers_bound_the_hosts_of_long_jobs() -> None:
    capacity = Capacity(job_us=250.0, busy_us=1000.0)
    assert capacity.ceiling == pytest.approx(4000.0)
    assert capacity.safe == pytest.approx(2000.0)
    assert capacity.hosts(16, 1.0) == pytest.approx(100.0)  # 1000 µs of upkeep and 16 jobs of 250 µs each second
    assert capacity.hosts(16, 1e9) == pytest.approx(500.0, rel=1e-3)


def test_the_scale_of_a_redis_is_arithmetic_over_the_run() -> None:
    parts: dict[str, Any] = {
        "growth": [new_growth("workers", 1, 900.0)],
        "store": STORE,
        "upkeep": {"workers": 2, "idle_cpu_us": 2000.0, "idle_calls": 50.0, "busy_cpu_us": 1000.0, "busy_calls": 20.0},
        "limit": [{"clients": 1, "per_second": 1000.0, "redis_busy": 0.1, "redis_cpu_us": 60.0}],
        "one_worker": {"per_second": 200.0, "cpu_us": 4000.0},
    }
    text = render_blocks(new_figures(**parts))["scale"]
    assert "ends at about 9,524 jobs/s" in text
    assert "submit takes 20, claim and end 60 in pipelines, collect 5; the other 20 are events" in text
    assert "268 k outcomes" in text
    assert "One worker process ends at 200 jobs/s" in text
    assert "4.0 ms of its CPU a job" in text


def new_processes(number: int, per_second: float, cpu_us: float) -> dict[str, float]:
    others = {"redis_cpu_us": 250.0, "busy_cores": 1.9}
    return {"number": number, "per_second": per_second, "worker_cpu_us": cpu_us, **others}


def test_two_processes_are_compared_with_one() -> None:
    rows = [new_processes(1, 250.0, 4000.0), new_processes(2, 400.0, 4400.0)]
    figures = new_figures(worker_processes=rows)
    (goal,) = [goal for goal in judge(figures) if "processes" in goal.what]

    assert (goal.baseline, goal.found, goal.is_met) == ("250/s", "400/s (1.60x)", False)
    assert "with a core for each they would end 1.82x" in goal.reason
    assert "| 2 | 400 | 4.40 | 250 | 1.9 of " in render_blocks(figures)["scale"]
    assert [goal.what for goal in judge(new_figures(worker_processes=rows[:1]))] == []


def test_publishing_fills_marked_blocks_only() -> None:
    text = "a\n<!-- bench:goals:begin -->\nold\n<!-- bench:goals:end -->\nb <!-- settings:begin -->\n"
    found = fill(text, {"goals": "new"})
    assert found == "a\n<!-- bench:goals:begin -->\nnew\n<!-- bench:goals:end -->\nb <!-- settings:begin -->\n"
    assert fill(found, {"goals": "new"}) == found
    assert "not measured" in fill(text, {"goals": ""})
    with pytest.raises(KeyError):
        fill(text, {})


def test_each_document_has_blocks_that_the_report_knows() -> None:
    known = set(render_blocks(new_figures()))
    for name in DOCUMENTS:
        marked = {match["name"] for match in MARKED.finditer((ROOT / name).read_text())}
        assert marked, name
        assert marked <= known, name


def test_prepared_starts_are_judged_beside_warm_ones() -> None:
    def new(program: str, **ms: float) -> dict[str, Any]:
        ways = {BARE: 700.0, WARM: 650.0} | ({PREPARED: ms["prepared"]} if ms else {})
        rounds = {way: [value, value] for way, value in ways.items()}
        rates = {way: [1000 / value, 1000 / value] for way, value in ways.items()}
        share = 1.0 if ms else None
        fields = {"release": "r", "program": program, "at_once": 4, "prepared_share": share}
        return {**fields, "ms": rounds, "per_second": rates}

    figures = new_figures(prepared=[new(DATA.name, prepared=26.0), new(DATA.name, prepared=65.0), new(TRUE)])
    goals = judge(figures)
    assert [goal.is_met for goal in goals] == [True, True, True, False, False, True, False, False]
    assert goals[1].found == "25.0x"
    assert goals[3].reason.startswith("100% of the single jobs")
    assert "whole queue, prepared | 26.0 | 26.9x | 38.5 |" in render_blocks(figures)["prepared"]


@pytest.mark.parametrize(("release", "least"), [("0.0~20240729.0", 1.4), ("release-20260905.0", 1.35)])
def test_each_release_has_the_bounds_of_its_own(release: str, least: float) -> None:
    def new(program: str, outside_ms: float | None = None, **rates: float) -> dict[str, Any]:
        ways = {{"bare": BARE, "warm": WARM, "prepared": PREPARED}[name]: rate for name, rate in rates.items()}
        fields = {"release": release, "program": program, "at_once": 4, "outside_ms": outside_ms}
        rounds = {way: [10.0, 10.0] for way in ways}
        return {**fields, "ms": rounds, "per_second": {way: [rate, rate] for way, rate in ways.items()}}

    rows = [
        new(TRUE, 2.0, bare=10.0, warm=10.0 * least),
        new(PRINT.name, bare=10.0, warm=20.0, prepared=10.0),
        new(PYTHON.name, bare=10.0, warm=20.0, prepared=18.0),
    ]
    found = {goal.what: goal for goal in judge(new_figures(prepared=rows))}
    assert all(f"(runsc {release})" in what for what in found)
    judged: list[tuple[str, Any]] = [(what.split(f" (runsc {release})")[0], goal.score) for what, goal in found.items()]
    assert judged == [
        ("`/bin/true`, warm, submit to outcome, idle, p50", pytest.approx(1.4)),
        ("`/bin/true`, jobs/s, 4 at once, against bare runsc", pytest.approx(1.0)),
        ("fleet's CPU a job, 4 at once: worker, Redis and producer, runsc aside", pytest.approx(1.25)),
        ("`python3 -c 'print(1)'`, prepared, submit to outcome, idle, p50", pytest.approx(2.0)),
        ("`python3 -c pass`, jobs/s, 4 at once, prepared against warm", pytest.approx(0.9)),
    ]


def test_the_slowest_question_to_the_history_is_told_and_judged() -> None:
    past = {
        "rows": 1_000_000,
        "store_seconds": 100.0,
        "size_bytes": 7 * 10**8,
        "ms": {"status": 0.1, "failures": 250.0},
    }
    blocks = render_blocks(new_figures(history=past))
    assert "takes 700 bytes for each, and stores 10,000 a second" in blocks["history"]
    assert "| failures | 250.0 |" in blocks["history"]
    assert "under 300 ms" in blocks["goals"]


def test_what_a_job_asks_of_redis_is_told_with_the_time_that_its_looks_in_vain_took() -> None:
    use = {"jobs": 300, "seconds": 12.4, "script_calls": 2.784, "input_bytes": 5633.8, "output_bytes": 3553.5}
    told = render_blocks(new_figures(redis_use=use))["redis"]
    assert "each of 300 jobs in 12 s calls 2.78 scripts in Redis, sends it 5,634 bytes and gets 3,554" in told
    assert render_blocks(new_figures())["redis"] == ""
