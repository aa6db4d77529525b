"""Preparations that fail are left alone for a while."""

from __future__ import annotations

from dataclasses import replace

from prepared_plan import INTERPRETER, PLAN
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_worker.sandbox.prepared.preparation import BARE
from sandfleet_worker.sandbox.warm.quarantine import UNFIT_SECONDS, Quarantine

BARE_PLAN = replace(PLAN, interpreter=replace(INTERPRETER, preparation=BARE))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def new_quarantine() -> tuple[Quarantine, Clock]:
    clock = Clock()
    return Quarantine(PreparedSettings(failures=3, quarantine_seconds=60), clock), clock


def test_three_failures_in_a_row_and_none_less() -> None:
    quarantine, _ = new_quarantine()
    assert [quarantine.note_failure(PLAN, "no numpy") for _ in range(3)] == [False, False, True]
    assert quarantine.holds(PLAN)
    assert not quarantine.is_unfit(PLAN)
    assert quarantine.list_held() == {"python:sci": "no numpy"}


def test_a_job_ends_the_row() -> None:
    quarantine, _ = new_quarantine()
    for _ in range(5):
        quarantine.note_failure(PLAN, "x")
        quarantine.note_failure(PLAN, "x")
        quarantine.note_job(PLAN, has_crashed=False)
    assert not quarantine.holds(PLAN)


def test_after_its_time_one_failure_is_enough() -> None:
    quarantine, clock = new_quarantine()
    for _ in range(3):
        quarantine.note_failure(PLAN, "x")
    clock.now += 61
    assert not quarantine.holds(PLAN)
    assert quarantine.list_held() == {}
    assert quarantine.note_failure(PLAN, "y")
    assert quarantine.list_held() == {"python:sci": "y"}


def test_an_image_without_a_fitting_python_is_remembered_and_no_fault() -> None:
    quarantine, clock = new_quarantine()
    assert quarantine.note_failure(BARE_PLAN, "unfit: Python 3.8", is_unfit=True)
    assert quarantine.is_unfit(BARE_PLAN)
    assert quarantine.list_held() == {}
    clock.now += UNFIT_SECONDS - 1
    assert quarantine.holds(BARE_PLAN)
    clock.now += 2
    assert not quarantine.holds(BARE_PLAN)


def test_a_preparation_of_the_operator_is_told_whatever_reason_its_image_gives() -> None:
    quarantine, clock = new_quarantine()
    assert quarantine.note_failure(PLAN, "unfit: says the image", is_unfit=True)
    assert not quarantine.is_unfit(PLAN)
    assert quarantine.list_held() == {"python:sci": "unfit: says the image"}
    clock.now += 61
    assert not quarantine.holds(PLAN)


def test_what_nobody_lists_any_more_is_not_told() -> None:
    quarantine, _ = new_quarantine()
    assert quarantine.note_failure(PLAN, "x", is_unfit=True)
    assert quarantine.list_held(lambda plan: plan is not PLAN) == {}


def test_more_than_one_crash_in_a_hundred() -> None:
    quarantine, _ = new_quarantine()
    for _ in range(400):
        quarantine.note_job(PLAN, has_crashed=False)
    assert [quarantine.note_job(PLAN, has_crashed=True) for _ in range(5)] == [False] * 4 + [True]
    assert "5 of 405 jobs crashed" in quarantine.list_held()["python:sci"]


def test_two_crashes_are_chance() -> None:
    quarantine, _ = new_quarantine()
    assert [quarantine.note_job(PLAN, has_crashed=True) for _ in range(3)] == [False, False, True]


def test_jobs_that_abort_by_themselves_among_others_hold_nothing() -> None:
    """Programs may call abort(3); a preparation that breaks a library lets nearly all jobs do so."""
    quarantine, _ = new_quarantine()
    for _ in range(50):
        for _ in range(2):
            assert not quarantine.note_job(PLAN)
        assert not quarantine.note_job(PLAN, has_aborted=True)
    assert [quarantine.note_job(PLAN, has_aborted=True) for _ in range(51)] == [False] * 50 + [True]
    assert "101 of 201 jobs crashed right after their start" in quarantine.list_held()["python:sci"]


def test_three_aborts_and_nothing_else_are_the_preparations() -> None:
    quarantine, _ = new_quarantine()
    assert [quarantine.note_job(PLAN, has_aborted=True) for _ in range(3)] == [False, False, True]


def test_another_image_or_runsc_has_a_fresh_chance() -> None:
    quarantine, _ = new_quarantine()
    for _ in range(3):
        quarantine.note_failure(PLAN, "x")
    assert not quarantine.holds(replace(PLAN, identity=(9, 2, 3, 4, 5)))
    assert not quarantine.holds(replace(PLAN, interpreter=replace(INTERPRETER, runsc=(2,))))
    assert not quarantine.holds(replace(PLAN, interpreter=None))
