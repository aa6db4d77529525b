"""The history has each run once, counts what it lost, and lives through what happens to its file."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from past import LAST, STREAM, Past, new_summary
from sandfleet import SandboxSpec
from sandfleet.history.heartbeat import lock_path
from sandfleet.history.questions import HistoryFilter
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_web.history import store as storing
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

SPEC = SandboxSpec(image="python", command=["true"], labels={"suite": "s7"})
KILLS = int(os.environ.get("TEST_HISTORY_KILLS", "15"))


def numbers(past: Past) -> list[int]:
    with closing(sqlite3.connect(past.file)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM run ORDER BY seq")]


def counted(past: Past) -> int:
    """Return how many runs the counts by minute have."""
    points = past.history.roll_up("category", since=0, until=time.time() + 600, step_seconds=86400)
    return sum(point.count for point in points)


def start_process(past: Past) -> subprocess.Popen[bytes]:
    code = """
from sandfleet_web.history import writer
writer.POLL_SECONDS = 0.001
from sandfleet_web.cli import main
main(["history", "run"])
"""
    with (past.folder / "run.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", code], env=past.environment(), stderr=log)


def test_a_reader_that_is_killed_at_any_moment_stores_each_run_once(past: Past) -> None:
    chance = random.Random(7)  # noqa: S311  no secret
    for _ in range(KILLS):
        process = start_process(past)
        try:
            wait_until(lambda: lock_path(past.file).exists(), 30, "the writer begins")
            past.add_runs(400)
            time.sleep(chance.random() * 0.4)  # its start takes 0.3 s
            past.add_runs(400)
            time.sleep(chance.random() * 0.2)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    past.write_all()

    status = past.history.status()
    assert numbers(past) == list(range(1, past.head() + 1)) == list(range(1, KILLS * 800 + 1))
    assert (status.rows, status.lost, status.skipped) == (KILLS * 800, 0, 0)
    assert counted(past) == KILLS * 800


def test_a_kill_between_insert_and_commit_loses_nothing_and_stores_nothing_twice(past: Past) -> None:
    past.add_runs(100)
    code = """
import os, signal
from sandfleet_web.history import store
store.HistoryStore._save = lambda self, position: os.kill(os.getpid(), signal.SIGKILL)
from sandfleet_web.cli import main
main(["history", "run"])
"""
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code], env=past.environment(), check=False).returncode == -9
    past.write_all()

    assert numbers(past) == list(range(1, 101))
    assert counted(past) == 100


def test_runs_that_left_the_stream_before_they_were_read_are_counted(past: Past) -> None:
    past.add_runs(100)
    past.write_all()
    past.add_runs(1000)
    past.redis.xtrim(STREAM, maxlen=300, approximate=False)
    past.write_all()
    past.redis.incrby(LAST, 5)  # runs at maxmemory, which have a number alone
    past.add_runs(10)
    past.write_all()

    status = past.history.status()
    assert (status.lost, status.rows, status.number, status.head) == (700 + 5, 410, 1115, 1115)
    assert abs(status.at - status.lost_at) < 60
    assert numbers(past) == [*range(1, 101), *range(801, 1101), *range(1106, 1116)]


def test_a_history_that_begins_late_has_lost_nothing(past: Past) -> None:
    past.add_runs(100)
    past.redis.xtrim(STREAM, maxlen=30, approximate=False)
    past.write_all()

    assert (past.history.status().lost, past.history.status().rows) == (0, 30)


def test_a_history_that_began_before_the_first_run_knows_what_it_lost(past: Past) -> None:
    past.write_all()
    past.add_runs(100)
    past.redis.xtrim(STREAM, maxlen=30, approximate=False)
    past.write_all()

    assert (past.history.status().lost, past.history.status().rows) == (70, 30)


def test_forged_entries_are_counted_and_skipped(past: Past) -> None:
    past.add_runs(3)
    good = json.loads(new_summary("x"))
    forged: list[dict[Any, Any]] = [
        {"n": "x", "run": new_summary("f1")},
        {"n": "-5", "run": new_summary("f2")},
        {"n": "1", "run": new_summary("f3")},
        {"n": "999999999999999999999999999", "run": new_summary("f4")},
        {"n": "4000000", "run": new_summary("f5")},
        {"run": new_summary("f6")},
        {"what": "else"},
        {b"\xff": b"\xff"},
        {"n": "2", "run": "x" * (1 << 20)},
    ]
    for fields in forged:
        past.redis.xadd(STREAM, fields)
    bad = [
        "not JSON",
        "[]",
        "x" * (1 << 20),
        json.dumps(good | {"id": 7}),
        json.dumps(good | {"cpu": -1}),
        "{" * 900,
        b"\xff\xfe",
    ]
    for text in bad:
        past.redis.xadd(STREAM, {"n": past.redis.incr(LAST), "run": text})
    past.add_runs(3)
    past.write_all()

    status = past.history.status()
    assert (status.rows, status.lost, status.skipped) == (6, 0, len(forged) + len(bad))
    assert status.fault == ""


def test_forged_numbers_are_bounded_in_the_file_and_its_sums(past: Past) -> None:
    huge = {
        "submitted": 1 << 61,
        "started": 1,
        "steps": [4e18, 4e18],
        "cpu": 4e18,
        "memory": 1 << 62,
        "attempts": 1 << 62,
        "peak": 1 << 62,
    }
    tries = [["h", "w", "OK", 1 << 62, 1 << 62, 1]]
    for number in range(50):
        summary = json.loads(new_summary(f"huge-{number}")) | huge | {"exit": 1 << 62, "run": 1 << 62, "tries": tries}
        past.redis.xadd(STREAM, {"n": past.redis.incr(LAST), "run": json.dumps(summary)})
    past.write_all()

    assert past.history.status().rows == 50
    assert len(past.history.find_runs(HistoryFilter()).rows) == 50
    assert past.history.find_usage("batch", HistoryFilter())[0].jobs == 50
    assert counted(past) == 50


def test_an_entry_of_a_far_future_does_not_hide_those_after_it(past: Past) -> None:
    future = round((time.time() + 10 * 365 * 86400) * 1000)
    past.redis.xadd(STREAM, {"n": past.redis.incr(LAST), "run": new_summary("future")}, id=f"{future}-0")
    past.add_runs(3)
    past.write_all()

    rows = past.history.find_runs(HistoryFilter()).rows
    assert len(rows) == 4
    assert max(row.ended for row in rows) < time.time() + 600


@pytest.mark.parametrize("key", [LAST, f"{KEY_PREFIX}ended_runs:forgotten"])
def test_a_key_of_a_wrong_type_does_not_end_the_history(past: Past, key: str) -> None:
    past.add_runs(2)
    kept = past.redis.dump(key)
    past.redis.delete(key)
    past.redis.hset(key, "forged", "1")
    with past.writing() as writer:
        wait_until(lambda: writer.status().state == "writes", 10, "it reads")
        past.redis.delete(key)
        if kept is not None:
            past.redis.restore(key, 60_000, kept)
        wait_until(lambda: past.file.exists() and past.history.status().rows == 2, 10, "it goes on")
        assert writer.status().fault == ""


def test_a_second_writer_waits_and_goes_on_when_the_first_has_ended(past: Past) -> None:
    with past.writing() as second:
        wait_until(lambda: second.status().state == "writes", 10, "it writes")
        process = start_process(past)
        try:
            time.sleep(1)
            past.add_runs(10)
            past.wait_stored()
            assert process.poll() is None
            second.stop()
            past.add_runs(10)
            past.wait_stored()
        finally:
            process.terminate()
            assert process.wait(10) == 0

    assert numbers(past) == list(range(1, 21))


def test_two_processes_that_begin_at_once_store_each_run_once(past: Past) -> None:
    processes = [start_process(past) for _ in range(3)]
    try:
        for _ in range(20):
            past.add_runs(50)
            time.sleep(0.05)
        past.wait_stored()
        log = past.folder / "run.log"
        wait_until(lambda: log.read_text().count("another process writes") == 2, 30, "two wait")
    finally:
        for process in processes:
            process.terminate()
        assert [process.wait(10) for process in processes] == [0, 0, 0]

    assert numbers(past) == list(range(1, 1001))


def test_a_full_disk_stops_the_history_and_it_goes_on_when_there_is_space(past: Past, small_disk: Path) -> None:
    past.move_to(small_disk)
    with past.writing() as writer:
        past.add_runs(50)
        past.wait_stored()
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):  # noqa: PT012
            while True:
                file.write(b"x" * 4096)
        past.add_runs(3000)
        wait_until(lambda: "full" in writer.status().fault, 10, "the fault is told")
        wait_until(lambda: "full" in past.history.status().fault, 10, "readers see it, too")
        assert past.end([SPEC])  # jobs end meanwhile
        filler.unlink()
        past.wait_stored()
        wait_until(lambda: past.history.status().fault == "", 10, "the fault is over")

    assert numbers(past) == list(range(1, 3052))


@pytest.mark.parametrize("damage", ["no database", "a torn page"])
def test_a_damaged_file_is_put_aside_and_begun_anew_with_a_line_that_says_so(past: Past, damage: str) -> None:
    past.add_runs(2000)
    past.write_all()
    past.fold_journal()
    raw = bytearray(past.file.read_bytes())
    if damage == "no database":
        raw[:] = b"x" * 10_000
    else:
        for page in range(1, len(raw) // 4096):
            raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    past.file.write_bytes(raw)
    past.add_runs(5)
    past.write_all()

    status = past.history.status()
    assert "damaged" in status.note
    assert "begun anew" in status.note
    assert (status.rows, status.lost) == (2005, 0)  # the stream still has them
    assert past.file.with_name("history.db.damaged").exists()


def test_damage_that_shows_while_it_writes_is_handled_too(past: Past) -> None:
    with past.writing() as writer:
        past.add_runs(2000)
        past.wait_stored()
        past.fold_journal()
        assert writer._store is not None
        writer._store._connection.execute("PRAGMA shrink_memory")
        raw = bytearray(past.file.read_bytes())
        for page in range(2, len(raw) // 4096):
            raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
        past.file.write_bytes(raw)
        past.add_runs(500)
        wait_until(lambda: past.file.with_name("history.db.damaged").exists(), 10, "it is put aside")
        past.wait_stored()

    assert "begun anew" in past.history.status().note


def test_the_file_of_a_newer_release_is_left_alone(past: Past) -> None:
    past.write_all()
    with closing(sqlite3.connect(past.file)) as connection:
        connection.execute("PRAGMA user_version=99")
    past.history.close()
    with past.writing() as writer:
        wait_until(lambda: "bring this one to the newer release" in writer.status().fault, 10, "the fault is told")

    assert not past.file.with_name("history.db.damaged").exists()


def test_runs_that_are_too_old_are_deleted_those_that_ended_ok_first(past: Past) -> None:
    now, day = round(time.time() * 1000), 86_400_000
    for age in (40, 20, 10, 2):
        for code in ("OK", "TIMEOUT"):
            past.redis.xadd(
                STREAM,
                {"n": past.redis.incr(LAST), "run": new_summary(f"{code}-{age}", code)},
                id=f"{now - age * day}-*",
            )
    past.write_all()
    with past.writing():
        wait_until(lambda: past.history.status().rows == 4, 10, "the old ones are gone")

    assert sorted(row.job_id for row in past.history.find_runs(HistoryFilter()).rows) == [
        "OK-2",
        "TIMEOUT-10",
        "TIMEOUT-2",
        "TIMEOUT-20",
    ]
    assert past.count_labels() == 4
    assert past.history.status().oldest == pytest.approx(time.time() - 20 * 86400, abs=60)


def test_of_too_many_rows_the_oldest_that_ended_ok_go_first(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "PORTION", 10)
    past.add_runs(20, "TIMEOUT")
    past.add_runs(100)
    past.write_all()
    with past.writing(max_rows=60):
        wait_until(lambda: past.history.status().rows == 60, 10, "it is pruned")

    codes = [row.code for row in past.history.find_runs(HistoryFilter(), count=100).rows]
    assert (codes.count("TIMEOUT"), codes.count("OK")) == (20, 40)
    assert numbers(past) == [*range(1, 21), *range(81, 121)]
    assert past.count_labels() == 60
    with past.writing(max_rows=20):
        wait_until(lambda: past.history.status().rows == 20, 10, "it is pruned")
    assert numbers(past) == [*range(11, 21), *range(111, 121)]


def test_labels_are_bounded_too(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "MAX_LABELS_PER_ROW", 1)
    for _ in range(100):
        labels = {f"k{number}": "v" for number in range(10)}
        past.redis.xadd(STREAM, {"n": past.redis.incr(LAST), "run": new_summary(f"job-{_}", labels=labels)})
    past.write_all()
    with past.writing(max_rows=100):
        wait_until(lambda: past.count_labels() <= 100, 10, "it is pruned")


def test_a_forgotten_batch_goes_and_its_later_runs_stay(past: Past) -> None:
    past.end([SPEC] * 5, batch="nightly")
    past.end([SPEC] * 5, batch="other")
    past.write_all()
    past.end([SPEC] * 5, batch="nightly")  # not read yet when the batch is forgotten
    assert past.fleet.batch("nightly").forget().forgotten == 10
    past.end([SPEC] * 2, batch="nightly")
    past.write_all()

    with past.writing():
        wait_until(lambda: past.history.status().rows == 7, 10, "it is forgotten")
    assert [row.batch for row in past.history.find_runs(HistoryFilter()).rows] == ["nightly"] * 2 + ["other"] * 5
    assert past.history.status().lost == 0
    assert past.count_labels() == 7


def test_a_forgotten_batch_leaves_no_count_that_names_it(past: Past) -> None:
    for batch in ("nightly", "other"):
        past.end([SPEC] * 5, ErrorCode.TIMEOUT, batch=batch, message="the program ran longer than its timeout of 3 s")
    past.write_all()
    with closing(sqlite3.connect(past.file)) as connection:
        assert connection.execute("SELECT count FROM failure WHERE kind = 'group'").fetchall() == [(10,)]
    past.fleet.batch("nightly").forget()
    with past.writing():
        wait_until(lambda: past.history.status().rows == 5, 10, "it is forgotten")

    with closing(sqlite3.connect(past.file)) as connection:
        assert connection.execute("SELECT key, count FROM failure WHERE kind <> 'host'").fetchall() == [
            ("other", 5),
            ("", 5),
        ]
        assert connection.execute("SELECT batch, jobs FROM usage").fetchall() == [("other", 5)]
    past.fold_journal()
    assert b"nightly" not in past.file.read_bytes()


def test_what_an_overrun_stream_took_along_is_forgotten_all_the_same(past: Past) -> None:
    past.end([SPEC] * 5, batch="nightly")
    past.write_all()
    past.fleet.batch("nightly").forget()
    past.redis.xtrim(STREAM, maxlen=0, approximate=False)
    with past.writing():
        wait_until(lambda: past.history.status().rows == 0, 10, "it is forgotten")


def test_a_redis_that_lost_its_last_second_gives_numbers_again(past: Past) -> None:
    past.add_runs(100)
    past.write_all()
    past.redis.set(LAST, 95)
    for entry, _ in past.redis.xrevrange(STREAM, count=5):
        past.redis.xdel(STREAM, entry)
    past.pretend_restart()
    past.add_runs(20)
    past.write_all()

    status = past.history.status()
    assert (status.lost, status.skipped, status.number, status.rows) == (0, 0, 115, 120)


def test_a_replica_whose_clock_is_behind_loses_nothing_more(past: Past) -> None:
    """It took over without the last entries, and gives their numbers again, with earlier ids."""
    past.add_runs(95)
    time.sleep(0.05)
    past.add_runs(5)
    past.write_all()
    before = past.history.find_runs(HistoryFilter(), count=200).rows
    for entry, _ in past.redis.xrevrange(STREAM, count=5):
        past.redis.xdel(STREAM, entry)
    kept = past.redis.xrange(STREAM)
    past.redis.delete(STREAM)
    for entry, fields in kept:
        past.redis.xadd(STREAM, fields, id=entry)
    last = int(kept[-1][0].split(b"-")[0])
    for number in range(5):
        past.redis.xadd(STREAM, {"n": 96 + number, "run": new_summary(f"again-{number}")}, id=f"{last}-{5000 + number}")
    past.pretend_restart()
    past.add_runs(3)
    past.write_all()

    status = past.history.status()
    assert (status.lost, status.skipped, status.number, status.rows) == (0, 0, 103, 108)
    rows = past.history.find_runs(HistoryFilter(), count=200).rows
    assert {row.job_id for row in rows} >= {f"again-{number}" for number in range(5)}
    assert {row.job_id: row.ended for row in rows}.items() >= {row.job_id: row.ended for row in before}.items()


def test_a_run_that_ends_again_after_a_failover_has_one_row(past: Past) -> None:
    past.add(new_summary("job-1", "OK"))
    past.write_all()
    past.add(new_summary("job-1", "TIMEOUT"))
    past.add(new_summary("job-1", "OK", run=2))
    past.write_all()

    assert [(row.run, row.code) for row in past.history.runs_of("job-1")] == [(2, "OK"), (1, "TIMEOUT")]
    assert [row.run for row in past.history.find_runs(HistoryFilter(is_newest=True)).rows] == [2]
    assert past.history.status().rows == 2
    assert past.count_labels() == 2


def test_another_redis_is_read_from_its_begin(past: Past, ledger: Any) -> None:
    past.add_runs(10)
    past.write_all()
    with closing(sqlite3.connect(past.file)) as connection:
        connection.execute("UPDATE meta SET value = 'redis://elsewhere:6379/0' WHERE name = 'redis'")
        connection.execute("UPDATE meta SET value = 'other' WHERE name = 'redis_run'")
        connection.execute("UPDATE meta SET value = 5000 WHERE name = 'number'")
        connection.commit()
    past.add_runs(10)
    with past.writing():
        wait_until(lambda: past.history.status().number == 20, 10, "it is read")

    assert (past.history.status().rows, past.history.status().lost) == (20, 0)
    assert counted(past) == 20


def test_failures_of_one_kind_have_one_fingerprint(past: Past) -> None:
    for number in range(3):
        past.end([SPEC], ErrorCode.WORKER_LOST, message=f"worker host-{number}.{number * 7} died with the job")
    past.end([SPEC], ErrorCode.EXIT_NONZERO, exit_code=2, message="the program exited 2")
    past.end([SPEC], ErrorCode.EXIT_NONZERO, exit_code=3, message="the program exited 3")
    past.write_all()

    groups = past.history.find_failures(HistoryFilter())
    assert [(group.code, group.count) for group in groups] == [
        ("WORKER_LOST", 3),
        ("EXIT_NONZERO", 1),
        ("EXIT_NONZERO", 1),
    ]
