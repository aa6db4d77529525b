"""One test for all rows of a table: collecting a thousand tests takes seconds."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_SHOWN = 10
"""Failing rows with their tracebacks; of more, only the rows are named."""


def each_row(names: str | Sequence[str], rows: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call the test once for each of `rows`, as ``pytest.mark.parametrize`` would, within one test.

    It goes on after a row that fails, and fails with all of them, each named in a note. Fixtures
    are shared by the rows, so it is for tests that leave nothing behind.
    """
    parameters = [names] if isinstance(names, str) else list(names)
    table = [(row,) if isinstance(names, str) else tuple(row) for row in rows]
    if not table:
        raise ValueError("a table without rows shows nothing")

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            failures = [
                failure
                for row in table
                if (
                    failure := _run_row(
                        functools.partial(test, *args, **kwargs), dict(zip(parameters, row, strict=True))
                    )
                )
                is not None
            ]
            if failures:
                _fail(failures, len(table))

        signature = inspect.signature(test)
        kept = [parameter for name, parameter in signature.parameters.items() if name not in parameters]
        run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]  # pytest reads it for fixtures
        return run

    return decorate


def _run_row(test: Callable[..., None], row: dict[str, Any]) -> Exception | None:
    try:
        test(**row)
    except pytest.fail.Exception as error:
        if "pytest-timeout" in str(error):
            raise  # the time of the whole test is over
        failure: Exception = AssertionError(str(error))
        failure.__traceback__ = error.__traceback__
    except Exception as error:  # noqa: BLE001  told below
        failure = error
    else:
        return None
    failure.add_note("row: " + ", ".join(f"{name}={ascii(value)[:200]}" for name, value in row.items()))
    return failure


def _fail(failures: list[Exception], count: int) -> None:
    others = [failure.__notes__[-1] for failure in failures[MAX_SHOWN:]]
    text = f"{len(failures)} of {count} rows failed"
    raise ExceptionGroup("\n".join([text, *others]), failures[:MAX_SHOWN])
