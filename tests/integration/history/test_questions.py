"""Each question to the history has the answer that Python finds in the same runs."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from api_server import serve_history
from past_rows import new_runs, store_runs
from sandfleet.errors import HistoryUnavailable, QueryTooSlow
from sandfleet.history import open_file
from sandfleet.history.file_history import FileHistory
from sandfleet.history.questions import MAX_DEPTH, HistoryFilter, RunTimes
from sandfleet.history.remote_history import RemoteHistory
from sandfleet.history.times import new_times
from sandfleet.overview.host_failures import HostFailures, read_host_failures
from sandfleet_config.ended_run import Try
from sandfleet_config.failure_kind import fingerprint_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandfleet.history.questions import History, PastRun
    from sandfleet_web.history.rows import NewRow

COUNT: Final = 3000
SAME: Final = (
    *("job_id", "run", "code", "category", "batch", "queue", "host", "image", "labels", "line", "message", "exit_code"),
    *("image_digest", "spec_sha256", "start", "steps", "memory_bytes", "memory_peak_bytes"),
)
LAST_MS: Final = 1_900_000_000_000
CHANCE: Final = random.Random(11)  # noqa: S311  no secret


@pytest.fixture(scope="module")
def runs() -> list[NewRow]:
    return list(new_runs(COUNT, last_ms=LAST_MS))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, runs: list[NewRow]) -> Path:
    path = tmp_path_factory.mktemp("history") / "history.db"
    store_runs(path, iter(runs))
    return path


@pytest.fixture(scope="module", params=["file", "http"])
def history(request: pytest.FixtureRequest, file: Path) -> Iterator[History]:
    known = FileHistory(file)
    if request.param == "file":
        yield known
    else:
        with serve_history(known) as url:
            yield RemoteHistory(url)
    known.close()


def takes(wanted: HistoryFilter, new: NewRow) -> bool:
    """Decide about a run as the words of a filter say."""
    run = new.run
    seconds = max(0, new.ended - round(run.started * 1000)) / 1000
    is_named = all(
        value in ("", getattr(run, name))
        for name, value in (
            ("batch", wanted.batch),
            ("job_id", wanted.job_id),
            ("host", wanted.host),
            ("queue", wanted.queue),
            ("image", wanted.image),
        )
    )
    is_coded = not (wanted.codes or wanted.categories) or run.code in wanted.codes or run.category in wanted.categories
    text = wanted.text.lower()
    return (
        is_named
        and is_coded
        and all(run.labels.get(key) == value for key, value in wanted.labels.items())
        and wanted.exit_code in (None, run.exit_code)
        and wanted.fingerprint in ("", fingerprint_failure(run.code, run.message))
        and (text in run.line.lower() or text in run.message.lower())
        and (wanted.since is None or new.ended >= wanted.since * 1000)
        and (wanted.until is None or new.ended <= wanted.until * 1000)
        and run.attempts >= wanted.min_attempts
        and seconds >= wanted.min_seconds
    )


def new_filters(runs: list[NewRow]) -> dict[str, dict[str, Any]]:
    """Return fields of a filter by the word that they stand for; each matches some runs."""
    chosen = CHANCE.choice([new for new in runs if not new.is_ok])
    run = chosen.run
    return {
        "batch": {"batch": run.batch or "batch-100"},
        "job": {"job_id": run.job_id},
        "code": {"codes": frozenset({run.code, "TIMEOUT"})},
        "category": {"categories": frozenset({run.category})},
        "label": {"labels": {"suite": run.labels["suite"]}},
        "labels": {"labels": dict(run.labels)},
        "host": {"host": run.host},
        "queue": {"queue": run.queue},
        "image": {"image": run.image},
        "exit": {"exit_code": CHANCE.choice((0, 1, 2))},
        "fingerprint": {"fingerprint": fingerprint_failure(run.code, run.message)},
        "since": {"since": chosen.ended / 1000},
        "until": {"until": chosen.ended / 1000},
        "attempts": {"min_attempts": 2},
        "run": {"min_seconds": CHANCE.choice((10.0, 29.0))},
        "text": {"text": CHANCE.choice(("--CASE 7", "Exited 2", "_%\\", "died with", "python3 /work"))},
    }


def join(one: dict[str, Any], other: dict[str, Any]) -> HistoryFilter:
    both = one | other
    if one.keys() & other.keys() == {"labels"}:
        both["labels"] = one["labels"] | other["labels"]
    return HistoryFilter(**both)


def read_all(history: History, wanted: HistoryFilter, count: int = 500) -> list[PastRun]:
    found: list[PastRun] = []
    cursor = ""
    while True:
        page = history.find_runs(wanted, count=count, cursor=cursor)
        found += page.rows
        cursor = page.cursor
        if not cursor:
            return found


@pytest.mark.parametrize("seed", range(3))
def test_each_filter_and_each_pair_finds_what_python_finds(history: History, runs: list[NewRow], seed: int) -> None:
    filters = new_filters(runs)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, fields) for fields in filters.values()] + list(
        itertools.combinations(filters.values(), 2)
    )
    if isinstance(history, RemoteHistory):
        pairs = pairs[seed::4]
    matched = 0
    for one, other in pairs:
        wanted = join(one, other)
        expected = [new.number for new in reversed(runs) if takes(wanted, new)]
        assert [run.number for run in read_all(history, wanted)] == expected, wanted
        assert history.count_runs(wanted) == len(expected), wanted
        matched += bool(expected)
    assert matched > len(pairs) / 3


@pytest.mark.parametrize("fields", [{}, {"batch": "batch-100"}, {"host": "host-07"}, {"codes": frozenset({"TIMEOUT"})}])
def test_times_are_those_of_a_sorted_list(history: History, runs: list[NewRow], fields: dict[str, Any]) -> None:
    wanted = HistoryFilter(**fields)
    matching = [new for new in runs if takes(wanted, new)]
    assert matching

    found = {row.code: row for row in history.find_times(wanted)}

    assert set(found) == {"", *(new.run.code for new in matching)}
    for code, row in found.items():
        of_code = [new for new in matching if code in {"", new.run.code}]
        started = [new for new in of_code if new.run.started]
        ran = sorted(new.ended / 1000 - new.run.started for new in started)
        waited = sorted(new.run.started - new.run.submitted for new in started)
        assert row.count == len(of_code)
        for values, median, p95 in (
            (ran, row.run_median, row.run_p95),
            (waited, row.wait_median, row.wait_p95),
        ):
            places = [-(-len(values) * part // 100) - 1 for part in (50, 95)]
            assert (median, p95) == pytest.approx([values[place] for place in places], abs=0.002)


def test_runs_that_never_started_have_no_times() -> None:
    assert new_times("EXPIRED", 3, [], []) == RunTimes(code="EXPIRED", count=3)
    assert new_times("OK", 1, [1500], [20]).run_p95 == 1.5


def test_times_are_those_of_the_newest_runs_where_there_are_too_many(
    history: History, runs: list[NewRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandfleet.history.times.MAX_TIMED", 10)
    (all_of_them, *_) = history.find_times(HistoryFilter())
    newest = [new for new in runs[-10:] if new.run.started]
    longest = max(new.ended / 1000 - new.run.started for new in newest)
    assert all_of_them.count == 10
    assert all_of_them.run_p95 == pytest.approx(longest, abs=0.002)


def test_a_run_comes_back_as_it_was_stored(history: History, runs: list[NewRow]) -> None:
    for new in runs[:50]:
        (found,) = history.runs_of(new.run.job_id)
        run = new.run
        for name in SAME:
            assert getattr(found, name) == getattr(run, name), name
        assert (found.ended, found.attempt_count) == (new.ended / 1000, run.attempts)
        assert found.started == pytest.approx(run.started, abs=0.001)
        assert found.cpu_seconds == pytest.approx(run.cpu_seconds or 0, abs=0.001)
        assert [(one.host, one.worker, one.code, one.slot) for one in found.attempts] == [
            (one.host, one.worker, one.code, one.slot) for one in run.tries
        ]


@pytest.mark.parametrize("count", [1, 7, 50])
def test_pages_have_each_run_once_while_others_end(file: Path, runs: list[NewRow], count: int) -> None:
    history = FileHistory(file)
    wanted = HistoryFilter(host="host-07")
    expected = [new.run.job_id for new in reversed(runs) if new.run.host == "host-07"]

    assert [run.job_id for run in read_all(history, wanted, count)] == expected
    history.close()


@pytest.mark.parametrize("cursor", ["x", "1", "-", "1-x", "-1-2", "1-99999999", "9" * 40 + "-1", "1-1-1"])
def test_a_forged_cursor_is_refused(history: History, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        history.find_runs(HistoryFilter(), cursor=cursor)


def test_a_list_ends_at_its_greatest_depth(history: History, file: Path, tmp_path: Path) -> None:
    page = history.find_runs(HistoryFilter(), count=50, cursor=f"{COUNT}-{MAX_DEPTH - 20}")

    assert (len(page.rows), page.cursor) == (20, "")


@pytest.mark.parametrize("by", ["fingerprint", "code", "image", "host", "batch"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"queue": "rl"}, {"batch": "batch-100"}, {"labels": {"suite": "s3"}}, {"since": LAST_MS / 1000 - 86400}],
)
def test_failures_are_grouped_as_python_groups_them(
    history: History, runs: list[NewRow], by: Any, fields: dict[str, Any]
) -> None:
    wanted = HistoryFilter(**fields)
    failed = [new for new in runs if not new.is_ok and takes(wanted, new)]
    keys: dict[str, Callable[[NewRow], object]] = {
        "fingerprint": lambda new: (
            fingerprint_failure(new.run.code, new.run.message),
            new.run.image,
        ),
    }
    key: Callable[[NewRow], object] = keys.get(by, lambda new: getattr(new.run, by))
    expected = Counter(map(key, failed))

    groups = history.find_failures(wanted, by=by, count=500)

    assert sorted(group.count for group in groups) == sorted(expected.values())
    assert [group.count for group in groups] == sorted((group.count for group in groups), reverse=True)
    for group in groups:
        members = [
            new for new in failed if key(new) == key(next(new for new in failed if new.run.job_id == group.example))
        ]
        assert group.count == len(members) == sum(group.trend)
        assert group.hosts == len({new.run.host for new in members})
        assert group.batches == len({new.run.batch for new in members} - {""})
        assert (group.first, group.last) == (members[0].ended / 1000, members[-1].ended / 1000)
        assert group.example == members[-1].run.job_id


def test_tries_are_counted_where_they_ran(tmp_path: Path, runs: list[NewRow]) -> None:
    """All end OK on another host: only the tries tell that host-07 is sick."""
    minute = LAST_MS // 60_000 * 60_000
    sick = [
        new._replace(
            number=number,
            ended=minute,
            run=replace(
                new.run,
                job_id=f"retried-{number}",
                code="OK",
                category="ok",
                host="host-01",
                attempts=3,
                tries=(
                    Try("host-07", code=("HOST_RESOURCES", "SANDBOX_EXECUTION_FAILED")[number % 2]),
                    Try("host-02", code="WORKER_LOST", charged=False),
                    Try("host-01", code="OK"),
                ),
            ),
        )
        for number, new in enumerate(runs[:30], 1)
    ]
    ended_in_queue = sick[0]._replace(number=31, run=replace(sick[0].run, job_id="q", host="", tries=()))
    cut = sick[0]._replace(
        number=32, run=replace(sick[0].run, job_id="cut", code="WORKER_LOST", category="host", tries=())
    )
    store_runs(tmp_path / "history.db", iter([*sick, ended_in_queue, cut]))
    history = FileHistory(tmp_path / "history.db")
    with serve_history(history) as url:
        for known in (history, RemoteHistory(url)):
            found = read_host_failures(known, minute / 1000 - 3600, minute / 1000 + 60)
            assert found == {"host-07": HostFailures(30, 30, 31, 1), "host-01": HostFailures(31, 1, 30, 30)}
            assert [host for host, failures in found.items() if failures.is_odd] == ["host-07"]
    history.close()


@pytest.mark.parametrize("by", ["category", "code", "queue", "host", "image"])
def test_rollups_are_sums_of_the_runs_of_each_step(history: History, runs: list[NewRow], by: Any) -> None:
    since, until = LAST_MS / 1000 - 7200, LAST_MS / 1000
    points = history.roll_up(by, since=since, until=until, step_seconds=600)

    expected: Counter[tuple[int, str]] = Counter()
    queued: Counter[tuple[int, str]] = Counter()
    for new in runs:
        minute = new.ended // 60_000
        if since // 60 <= minute < -(-until // 60):
            place = (minute // 10 * 600, getattr(new.run, by))
            expected[place] += 1
            queued[place] += round(new.run.steps["queued"] * 1000)
    assert {(int(point.at), point.key): point.count for point in points} == dict(expected)
    assert {(int(point.at), point.key): round(point.queued_seconds * 1000) for point in points} == dict(queued)


@pytest.mark.parametrize(("by", "label"), [("batch", ""), ("label", "suite")])
@pytest.mark.parametrize("fields", [{}, {"queue": "rl"}, {"batch": "batch-100"}, {"labels": {"suite": "s3"}}])
def test_use_is_the_sum_of_the_runs(
    history: History, runs: list[NewRow], by: Any, label: str, fields: dict[str, Any]
) -> None:
    wanted = HistoryFilter(**fields)
    matching = [new for new in runs if takes(wanted, new)]

    def key(new: NewRow) -> str:
        return new.run.labels[label] if label else new.run.batch

    rows = history.find_usage(by, wanted, label=label, count=500)

    assert {row.key: row.jobs for row in rows} == dict(Counter(map(key, matching)))
    for row in rows:
        members = [new for new in matching if key(new) == row.key]
        assert row.ok == sum(new.is_ok for new in members)
        assert row.failures == dict(Counter(new.run.code for new in members if not new.is_ok))
        assert row.cpu_hours == pytest.approx(sum(new.run.cpu_seconds or 0 for new in members) / 3600, abs=1e-5)
        gib = sum(new.run.memory_bytes * new.run.steps["run"] for new in members) / 3600 / (1 << 30)
        assert row.gib_hours == pytest.approx(gib, rel=1e-5)


def test_a_question_that_takes_too_long_says_to_narrow_the_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_file, "STEPS_BETWEEN_CHECKS", 100)
    files = open_file.OpenFiles(file)
    began = time.monotonic()
    with pytest.raises(QueryTooSlow, match="narrow the time"), files.reading(0.1) as connection:
        connection.execute(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
        ).fetchone()
    assert time.monotonic() - began < 2
    with files.reading() as connection:  # the same connection goes on
        assert connection.execute("SELECT count(*) FROM run").fetchone()[0] == COUNT
    files.close()


def test_many_threads_ask_at_once(history: History, runs: list[NewRow]) -> None:
    answers: list[int] = []

    def ask() -> None:
        answers.extend(history.count_runs(HistoryFilter(queue="rl")) for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [sum(new.run.queue == "rl" for new in runs)] * 80


def test_without_a_file_there_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(HistoryUnavailable, match="there is no history at"):
        FileHistory(tmp_path / "none.db").status()


def test_a_name_that_was_cut_is_found_by_the_whole_one(tmp_path: Path, runs: list[NewRow]) -> None:
    from sandfleet_config.ended_run import cut_name

    long = "b" * 400
    path = tmp_path / "history.db"
    store_runs(path, (new._replace(run=replace(new.run, batch=cut_name(long))) for new in runs[:5]))
    history = FileHistory(path)

    assert history.count_runs(HistoryFilter(batch=long)) == 5
    history.close()
