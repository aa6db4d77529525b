"""CPython's own tests end the same, cold and prepared: only in `make test-conformance`, on Pythons that have them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from plain_runs import Run
from programs import read_cases
from pythons import IS_WHOLE, Python, find_pythons

PAGE = Path(__file__).parents[2] / "docs/explanation/prepared.md"
MODULES = (
    *("atexit", "collections", "contextlib", "copy", "csv", "dataclasses", "enum", "exceptions", "functools"),
    *("gc", "generators", "heapq", "itertools", "json", "linecache", "pickle", "re", "runpy", "shlex", "signal"),
    *("string", "textwrap", "threading", "traceback", "weakref", "zipimport"),
)
_RESULT = re.compile(rb"^(?:ERROR|FAIL): .*|^Ran \d+ tests?|^OK.*|^FAILED.*", re.MULTILINE)


def has_tests(python: Python) -> bool:
    return bool(list(python.path.parents[1].glob("lib/python3*/test/test_json")))


def summary(run: Run) -> tuple[int, list[bytes]]:
    return run.code, _RESULT.findall(run.stderr)


TESTED = [python for python in find_pythons() if has_tests(python)]


def test_the_page_names_the_test_modules() -> None:
    (listed,) = re.findall(r"^`test_([a-z_`,\s]+)`\.$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(re.split(r"`,\s`test_", listed)) == MODULES


@pytest.mark.conformance
@pytest.mark.skipif(not IS_WHOLE, reason="only the system's Python is looked at")
def test_a_python_with_its_own_tests_is_here() -> None:
    """Debian's has none; without one of pyenv no test below runs."""
    assert TESTED, "no Python here has its own tests: install one with pyenv"


@pytest.mark.conformance
@pytest.mark.parametrize("python", TESTED, ids=lambda p: p.path.parts[-3])
@pytest.mark.parametrize("module", MODULES)
def test_a_test_module_of_cpython_ends_the_same(module: str, python: Python, tmp_path: Path) -> None:
    case = replace(
        read_cases()[0], argv=("python3", "-m", "unittest", f"test.test_{module}"), files={}, env={}, stdin=b""
    )
    cold = summary(python.cold(case, tmp_path))
    assert cold[1], "it has run no test"
    assert summary(python.prepared(case, tmp_path)) == cold
