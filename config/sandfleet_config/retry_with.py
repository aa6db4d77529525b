"""The field `retry_with` of a spec: higher limits for the attempt after one that ran into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic_core import PydanticCustomError

from sandfleet_config.bounds import MIN_MEMORY_BYTES, MIN_TIMEOUT_SECONDS, least
from sandfleet_config.fields import Bytes, ContractModel, Seconds
from sandfleet_config.units import format_limit

if TYPE_CHECKING:
    from collections.abc import Mapping


class RetrySpec(ContractModel):
    """Limits of the next attempts after `OUT_OF_MEMORY` or `TIMEOUT`.

    Zero: such an end is final, as without the field. Each limit is raised once; the attempts before
    and after it are charged.
    """

    memory_bytes: Annotated[Bytes, least("memory_bytes", MIN_MEMORY_BYTES)] = Field(
        default=0, description="`resources.memory_bytes` after `OUT_OF_MEMORY`. Takes `2GiB`."
    )
    timeout: Annotated[Seconds, least("timeout", MIN_TIMEOUT_SECONDS)] = Field(
        default=0.0, description="`timeout` after `TIMEOUT`, in seconds."
    )

    def __bool__(self) -> bool:
        """Whether it raises anything."""
        return bool(self.memory_bytes or self.timeout)


def check_raise(wish: RetrySpec, asked: Mapping[str, float]) -> RetrySpec:
    """Refuse a limit that is not above the one it follows.

    `asked` are the limits by name, and `max_attempts`.
    """
    if not wish:
        return wish
    if asked.get("max_attempts") == 1:
        msg = "needs max_attempts of 2 or more: it is about another attempt"
        raise PydanticCustomError("retry_with", msg)
    if wish.memory_bytes and not asked.get("memory_bytes"):
        msg = "memory_bytes needs resources.memory_bytes, which it raises: without it a job has the host's ceiling"
        raise PydanticCustomError("retry_with", msg)
    for name, value in (("memory_bytes", wish.memory_bytes), ("timeout", wish.timeout)):
        if value and value <= asked.get(name, 0):
            msg = "{name} of {wish} must be more than the {asked} of the first attempt"
            texts = {"name": name, "wish": format_limit(name, value), "asked": format_limit(name, asked[name])}
            raise PydanticCustomError("retry_with", msg, texts)
    return wish
