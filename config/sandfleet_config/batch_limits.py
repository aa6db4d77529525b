"""The limits of a batch: when it stops, and how many of its jobs run at once."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from sandfleet_config.fields import ContractModel
from sandfleet_config.units import format_seconds, parse_seconds

MAX_DEADLINE_SECONDS = 30 * 86400.0
"""As long as the keys of a batch live."""


def _parse_time(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_seconds(value)
        except ValueError as error:
            msg = "{reason}"
            raise PydanticCustomError("time", msg, {"reason": str(error)}) from None
    return value


Time = Annotated[float, BeforeValidator(_parse_time), Field(gt=0, le=MAX_DEADLINE_SECONDS, allow_inf_nan=False)]


class BatchLimits(ContractModel):
    """Limits of one batch, which all of its jobs share over the whole fleet.

    A stop cancels the jobs that wait. `deadline` is in seconds from the submit that sets it; it
    takes ``"2h"``.
    """

    max_failures: int | None = Field(
        default=None, ge=1, description="The batch stops when so many of its jobs have failed."
    )
    fail_fast: bool = Field(default=False, description="The batch stops at its first failure.")
    at_most: int | None = Field(default=None, ge=1, le=1_000_000, description="So many of its jobs run at once.")
    deadline: Time | None = Field(default=None, description="The batch stops so many seconds after its submit.")
    on_stop: Literal["keep", "kill"] = Field(
        default="keep", description="At a stop, jobs that run go on (`keep`) or are cancelled (`kill`)."
    )

    @model_validator(mode="after")
    def _check_failures(self) -> Self:
        if self.fail_fast and self.max_failures not in {None, 1}:
            msg = "fail_fast is max_failures=1: give one of them"
            raise PydanticCustomError("two_limits", msg)
        return self

    def __bool__(self) -> bool:
        """Whether it limits anything."""
        return self.fail_fast or any(value is not None for value in (self.max_failures, self.at_most, self.deadline))

    @property
    def deadline_text(self) -> str:
        """The deadline in the units that people type, empty without one."""
        return "" if self.deadline is None else format_seconds(self.deadline)
