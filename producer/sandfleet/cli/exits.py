"""Exit codes of ``sandfleet run``: the program's own, or those of docker and timeout(1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from sandfleet_config.codes import Category, ErrorCode

if TYPE_CHECKING:
    from sandfleet_config.outcome import Outcome

SOME_NOT_OK: Final = 1
USAGE: Final = 2
COMPILE_ERROR: Final = 123
"""Of ``run --lang``: the program did not compile."""
TIMEOUT: Final = 124
OUR_FAILURE: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
SIGNAL_BASE: Final = 128
SIGPIPE: Final = 13
INTERRUPTED: Final = 130
KILLED: Final = 137
TERMINATED: Final = 143
"""Ended by SIGINT, SIGKILL and SIGTERM: 128 plus the signal's number, as in a shell."""

_EXITS: Final = {
    ErrorCode.TIMEOUT: TIMEOUT,
    ErrorCode.OUT_OF_MEMORY: KILLED,
    ErrorCode.COMMAND_NOT_EXECUTABLE: NOT_EXECUTABLE,
    ErrorCode.COMMAND_NOT_FOUND: NOT_FOUND,
    ErrorCode.CANCELLED: INTERRUPTED,
    ErrorCode.EXPIRED: OUR_FAILURE,
}


def exit_code(outcome: Outcome) -> int:
    """Return the exit code of ``sandfleet run`` for `outcome`."""
    if outcome.code in _EXITS:
        return _EXITS[outcome.code]
    category = outcome.code.category
    match category:
        case Category.OK | Category.PROGRAM | Category.LIMIT:
            return _program_exit(outcome)
        case Category.REQUEST | Category.HOST | Category.CONTROL:
            return OUR_FAILURE
        case _:
            assert_never(category)


def _program_exit(outcome: Outcome) -> int:
    """Return the exit code of the program; that of SIGKILL if a limit killed it."""
    if outcome.signal is not None:
        return SIGNAL_BASE + outcome.signal
    if outcome.exit_code is not None and (outcome.exit_code or outcome.is_ok):
        return outcome.exit_code
    return KILLED if outcome.code.category is Category.LIMIT else OUR_FAILURE


def is_own_exit(outcome: Outcome) -> bool:
    """Whether the exit code is the program's own: then no error is printed."""
    return outcome.code.is_own_end and outcome.exit_code is not None
