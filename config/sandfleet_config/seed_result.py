"""The seed's plain result of an outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.errors import InternalError, new_error

if TYPE_CHECKING:
    from sandfleet_config.outcome import Outcome, SandboxResult


def to_result(outcome: Outcome) -> SandboxResult:
    """Return the seed's result if the program exited by itself, with any number.

    Otherwise raise the code's exception.

    Raises:
        SandboxError: the class of the code; it carries the whole outcome.
    """
    from sandfleet_config.outcome import SandboxResult  # loaded by now; a submit would pay 20 ms for it

    if outcome.code.is_own_end and outcome.exit_code is not None:
        return SandboxResult(
            exit_code=outcome.exit_code,
            stdout=outcome.stdout.text,
            stderr=outcome.stderr.text,
            duration=outcome.duration or 0.0,
        )
    raise new_error(outcome) or InternalError.of("an outcome OK came without an exit code", outcome.to_json())
