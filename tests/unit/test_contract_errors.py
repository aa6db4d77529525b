from __future__ import annotations

import json
from pathlib import Path

import pytest
import sandfleet
from rows import each_row
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import ERROR_CLASSES, SandboxError, new_error
from sandfleet_config.outcome import Outcome, StreamOutput
from sandfleet_config.seed_result import to_result

GOLDEN = Path(__file__).parent / "golden" / "error_codes.json"


def test_the_table_of_codes_equals_the_golden_file() -> None:
    table = {
        code.value: {
            "category": code.category.value,
            "retryable": code.is_retryable,
            "class": None if code is ErrorCode.OK else ERROR_CLASSES[code].__name__,
        }
        for code in ErrorCode
    }
    assert table == json.loads(GOLDEN.read_text())


def test_every_code_but_ok_has_its_own_class_and_users_can_import_it() -> None:
    assert set(ERROR_CLASSES) == set(ErrorCode) - {ErrorCode.OK}
    assert len(set(ERROR_CLASSES.values())) == len(ERROR_CLASSES)
    for cls in ERROR_CLASSES.values():
        assert getattr(sandfleet, cls.__name__) is cls


def test_every_exported_name_exists() -> None:
    assert [name for name in sandfleet.__all__ if not hasattr(sandfleet, name)] == []


@each_row("code", [code for code in ErrorCode if code is not ErrorCode.OK])
def test_celery_can_rebuild_every_error(code: ErrorCode) -> None:
    cls = ERROR_CLASSES[code]
    outcome = Outcome.of(code, "j1", "why", exit_code=3, stdout=StreamOutput.of(b"\xff\x00"))
    args = json.loads(json.dumps(cls.of("why", outcome.to_json()).args))
    rebuilt = cls(*args)
    assert rebuilt.args == tuple(args)
    assert (rebuilt.code, rebuilt.message, rebuilt.outcome) == (code, "why", outcome)
    assert not isinstance(rebuilt, OSError)


def test_neither_text_nor_repr_of_an_error_repeats_output() -> None:
    outcome = Outcome.of(ErrorCode.TIMEOUT, "j1", "too long", stdout=StreamOutput.of(b"s3cret"))
    error = new_error(outcome)
    assert isinstance(error, SandboxError)
    for text in (str(error), repr(error), repr(outcome), repr([outcome])):
        assert "s3cret" not in text
    assert str(error) == "TIMEOUT: too long"


def test_a_nonzero_exit_is_a_result_and_every_other_code_is_raised() -> None:
    outcome = Outcome.of(ErrorCode.EXIT_NONZERO, "j1", exit_code=137, stdout=StreamOutput.of(b"x"), duration=1.5)
    result = to_result(outcome)
    assert (result.exit_code, result.stdout, result.duration) == (137, "x", 1.5)
    for code, cls in ERROR_CLASSES.items():
        if code is not ErrorCode.EXIT_NONZERO:
            with pytest.raises(cls) as caught:
                to_result(Outcome.of(code, "j1", "why", exit_code=1))
            assert caught.value.outcome is not None
            assert caught.value.outcome.exit_code == 1
