"""Each alert fires where it should and stays silent where it should not: promtool says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alert_rules import NAME, RULES, Case, judge, read_rules, run_promtool
from sandfleet_config.metric_names import METRICS

if TYPE_CHECKING:
    from pathlib import Path

AT = {"job": "fleet", "instance": "a"}


def one(name: str, **labels: str) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in (AT | labels).items())
    return f"sandfleet_{name}{{{inner}}}"


def queue(
    waiting: str, workers: str, paused: str = "0x60", age: str = "0x60", target: str = "300x60"
) -> dict[str, str]:
    return {
        one("queue_jobs", queue="q", state="waiting"): waiting,
        one("queue_workers", queue="q"): workers,
        one("queue_paused", queue="q"): paused,
        one("queue_oldest_age_seconds", queue="q"): age,
        one("queue_age_target_seconds", queue="q"): target,
    }


def tries(host: str, good: str, bad: str) -> dict[str, str]:
    return {
        one("attempts_ended_total", host=host, code="OK", category="ok"): good,
        one("attempts_ended_total", host=host, code="EXIT_NONZERO", category="program"): "0+100x90",
        one("attempts_ended_total", host=host, code="INTERNAL", category="host"): bad,
    }


def takes(hit: str, miss: str) -> dict[str, str]:
    return {one("warm_takes_total", result="hit"): hit, one("warm_takes_total", result="miss"): miss}


def boots(fast: str, slow: str) -> dict[str, str]:
    name = "sandbox_boot_seconds_bucket"
    return {
        one(name, kind="cold", le="1.0"): fast,
        one(name, kind="cold", le="5.0"): slow,
        one(name, kind="cold", le="+Inf"): slow,
    }


UP, DOWN = one("workers", state="up"), one("workers", state="cordoned")
READ = one("fleet_read_timestamp_seconds")
CASES = [
    Case("SandfleetNoWorkers", {UP: "2x5 0x5", DOWN: "1x10"}, 8, 1),
    Case("SandfleetNoWorkers", {UP: "2x10"}, 8, 0),
    Case("SandfleetNoWorkers", {UP: "2x5 0x10"}, 6, 0, "not for a moment"),
    Case("SandfleetQueueNotServed", queue("5x10", "0x10"), 5, 1),
    Case("SandfleetQueueNotServed", queue("5x10", "1x10"), 5, 0),
    Case("SandfleetQueueNotServed", queue("5x10", "0x10", paused="1x10"), 5, 0, "an operator paused it"),
    Case("SandfleetQueueNotServed", queue("0x10", "0x10"), 5, 0, "nothing waits"),
    Case("SandfleetQueueOld", queue("5x30", "1x30", age="0+60x30"), 15, 1),
    Case("SandfleetQueueOld", queue("5x30", "1x30", age="200x30"), 15, 0),
    Case("SandfleetQueueOld", queue("5x30", "1x30", age="0+60x30", target="3600x30"), 15, 0, "its target is longer"),
    Case("SandfleetQueueOld", queue("5x30", "1x30", age="0+60x30", paused="1x30"), 15, 0, "an operator paused it"),
    Case("SandfleetQueueVeryOld", queue("5x60", "1x60", age="0+60x60"), 50, 1),
    Case("SandfleetQueueVeryOld", queue("5x60", "1x60", age="900x60"), 50, 0),
    Case("SandfleetHostFailures", tries("h", "0+10x60", "0+5x60"), 30, 1),
    Case("SandfleetHostFailures", tries("h", "0+10x60", "0+1x60"), 30, 0, "less than 2 %"),
    Case("SandfleetHostFailures", tries("h", "0+1x60", "0x60"), 30, 0, "programs fail"),
    Case("SandfleetOddHost", tries("h", "0+10x60", "0+10x60") | tries("i", "0+10x60", "0x60"), 40, 1),
    Case("SandfleetOddHost", tries("h", "0+10x60", "0+2x60"), 40, 0),
    Case(
        "SandfleetOddHost",
        {one("attempts_ended_total", host="h", code="INTERNAL", category="host"): "0x20 1x40"},
        40,
        0,
        "too few to say",
    ),
    Case("SandfleetWorkersDie", {one("takeovers_total"): "0x5 1x3 2x3 3x5"}, 15, 1),
    Case("SandfleetWorkersDie", {one("takeovers_total"): "0x5 1x3 2x10"}, 13, 0),
    Case("SandfleetDeadLetters", {one("dead_letters"): "3x10 4x10"}, 14, 1),
    Case("SandfleetDeadLetters", {one("dead_letters"): "3x10 2x10"}, 14, 0, "fewer"),
    Case("SandfleetRedisFilling", {one("redis_memory_used_ratio"): "0.75x20"}, 15, 1),
    Case("SandfleetRedisFilling", {one("redis_memory_used_ratio"): "0.65x20"}, 15, 0),
    Case("SandfleetRedisFull", {one("redis_memory_used_ratio"): "0.85x20"}, 5, 1),
    Case("SandfleetRedisFull", {one("redis_memory_used_ratio"): "0.75x20"}, 5, 0),
    Case("SandfleetColdStarts", takes("0+10x90", "0+90x90"), 80, 1),
    Case("SandfleetColdStarts", takes("0+90x90", "0+10x90"), 80, 0),
    Case("SandfleetColdStarts", takes("0x90", "0+10x90"), 80, 0, "too few jobs to matter"),
    Case("SandfleetSlowBoots", boots("0+1x90", "0+10x90"), 80, 1),
    Case("SandfleetSlowBoots", boots("0+10x90", "0+10x90"), 80, 0),
    Case("SandfleetBlind", {READ: "0+60x5 300x20"}, 15, 1, "it is read no more"),
    Case("SandfleetBlind", {READ: "0+60x20"}, 15, 0),
    Case("SandfleetBlind", {READ: "0+60x5 stale"}, 15, 1, "nobody serves it"),
    Case("SandfleetHistoryLost", {one("history_lost_total"): "0x5 7x5"}, 8, 1),
    Case("SandfleetHistoryLost", {one("history_lost_total"): "7x10"}, 8, 0),
]


def test_the_rules_are_valid() -> None:
    assert f"{len(read_rules())} rules found" in run_promtool("check", "rules", "--lint=all", str(RULES))


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    names = {rule["alert"] for rule in read_rules()}
    assert {case.alert for case in CASES if case.firing} == names
    assert {case.alert for case in CASES if not case.firing} == names


@pytest.mark.parametrize("name", sorted({rule["alert"] for rule in read_rules()}))
def test_an_alert(name: str, tmp_path: Path) -> None:
    judge([case for case in CASES if case.alert == name], tmp_path)


def test_the_judge_can_fail(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="FAILED"):
        judge([Case("SandfleetNoWorkers", {UP: "2x10"}, 8, 1)], tmp_path)


def test_each_metric_of_the_rules_exists_and_each_rule_says_what_to_do() -> None:
    suffix = ("_bucket", "_count", "_sum")
    for rule in read_rules():
        found = NAME.findall(rule["expr"])
        assert found
        for name in found:
            base = next((name.removesuffix(end) for end in suffix if name.endswith(end)), name)
            assert base in METRICS, name
        assert rule["annotations"]["do"].endswith(".")
        assert rule["labels"]["severity"] in {"page", "warn", "info"}
