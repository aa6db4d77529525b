"""The loop over a table's rows reports failures as well as one test for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest
from rows import MAX_SHOWN, each_row

if TYPE_CHECKING:
    from collections.abc import Callable


def test_every_row_that_fails_is_named_and_the_others_run() -> None:
    seen = []

    @each_row(("number", "text"), [(number, f"row {number}") for number in range(30)])
    def check(number: int, text: str) -> None:
        seen.append(number)
        if number == 3:
            pytest.fail("no")
        assert number % 2 == 0, text

    with pytest.raises(ExceptionGroup, match="15 of 30 rows failed") as caught:
        check()

    assert seen == list(range(30))
    named = [note for failure in caught.value.exceptions for note in failure.__notes__]
    assert named == [f"row: number={number}, text='row {number}'" for number in range(1, 2 * MAX_SHOWN, 2)]
    assert "number=29, text='row 29'" in str(caught.value)


@pytest.fixture
def base() -> int:
    return 100


@each_row("number", [1, 2])
@each_row("factor", [1, 10])
def test_tables_are_multiplied_and_fixtures_are_given(base: int, number: int, factor: int) -> None:
    assert base + number * factor in {101, 102, 110, 120}


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="without rows"):
        each_row("number", [])


def test_a_skip_and_the_end_of_the_tests_time_end_the_loop() -> None:
    stops: list[tuple[Callable[[str], NoReturn], str]] = [
        (pytest.skip, "not here"),
        (pytest.fail, "Timeout (>1.0s) from pytest-timeout."),
    ]
    for stop, text in stops:
        seen: list[int] = []

        @each_row("number", [1, 2])
        def check(number: int, stop: Callable[[str], NoReturn], text: str, seen: list[int]) -> None:
            seen.append(number)
            stop(text)

        with pytest.raises((pytest.skip.Exception, pytest.fail.Exception)):
            check(stop=stop, text=text, seen=seen)
        assert seen == [1]
