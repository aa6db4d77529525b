from __future__ import annotations

from typing import Any

from rows import each_row
from sandfleet.cli.exits import exit_code, is_own_exit
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome

EXITS: dict[ErrorCode, tuple[dict[str, Any], int]] = {
    ErrorCode.OK: ({"exit_code": 0}, 0),
    ErrorCode.EXIT_NONZERO: ({"exit_code": 3}, 3),
    ErrorCode.SIGNALED: ({"signal": 11}, 139),
    ErrorCode.TIMEOUT: ({"exit_code": 143, "timed_out": "soft"}, 124),
    ErrorCode.OUT_OF_MEMORY: ({"signal": 9}, 137),
    ErrorCode.OUTPUT_LIMIT: ({}, 137),
    ErrorCode.DISK_LIMIT: ({"exit_code": 7}, 7),
    ErrorCode.PIDS_LIMIT: ({}, 137),
    ErrorCode.SPEC_INVALID: ({}, 125),
    ErrorCode.SPEC_TOO_LARGE: ({}, 125),
    ErrorCode.SECURITY_VIOLATION: ({}, 125),
    ErrorCode.IMAGE_NOT_FOUND: ({}, 125),
    ErrorCode.IMAGE_INVALID: ({}, 125),
    ErrorCode.COMMAND_NOT_FOUND: ({}, 127),
    ErrorCode.COMMAND_NOT_EXECUTABLE: ({}, 126),
    ErrorCode.WORKING_DIR_INVALID: ({}, 125),
    ErrorCode.USER_INVALID: ({}, 125),
    ErrorCode.CANCELLED: ({}, 130),
    ErrorCode.EXPIRED: ({}, 125),
    ErrorCode.GVISOR_NOT_AVAILABLE: ({}, 125),
    ErrorCode.DAEMON_UNAVAILABLE: ({}, 125),
    ErrorCode.CLIENT_NOT_CONFIGURED: ({}, 125),
    ErrorCode.SANDBOX_CREATION_FAILED: ({}, 125),
    ErrorCode.SANDBOX_EXECUTION_FAILED: ({}, 125),
    ErrorCode.IMAGE_UNAVAILABLE: ({}, 125),
    ErrorCode.HOST_RESOURCES: ({}, 125),
    ErrorCode.STORE_UNAVAILABLE: ({}, 125),
    ErrorCode.WORKER_LOST: ({"exit_code": 3}, 125),
    ErrorCode.INTERNAL: ({"exit_code": 0}, 125),
}


@each_row("code", ErrorCode)
def test_each_code_has_its_exit(code: ErrorCode) -> None:
    fields, expected = EXITS[code]
    outcome = Outcome.of(code, "j1", **fields)
    assert exit_code(outcome) == expected
    assert is_own_exit(outcome) == (code in {ErrorCode.OK, ErrorCode.EXIT_NONZERO})


@each_row("number", range(1, 256))
def test_a_programs_own_exit_stays_itself(number: int) -> None:
    outcome = Outcome.of(ErrorCode.EXIT_NONZERO, "j1", exit_code=number)
    assert exit_code(outcome) == number
    assert is_own_exit(outcome)


@each_row("code", [code for code in ErrorCode if code is not ErrorCode.OK])
@each_row("fields", [{}, {"exit_code": 0}])
def test_only_ok_exits_0(code: ErrorCode, fields: dict[str, Any]) -> None:
    assert exit_code(Outcome.of(code, "j1", **fields)) != 0


def test_an_ok_without_an_exit_code_is_our_failure() -> None:
    assert exit_code(Outcome.of(ErrorCode.OK, "j1")) == 125
