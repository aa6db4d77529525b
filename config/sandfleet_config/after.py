"""The field `after` of a spec: jobs and batches that must end ``OK`` before the job starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, cast

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from sandfleet_config.bounds import MAX_NAME_CHARS
from sandfleet_config.fields import ContractModel, refuse_control_characters
from sandfleet_config.queues import JOB_ID

MAX_AFTER_JOBS: Final = 100
MAX_AFTER_BATCHES: Final = 10


def _check_job_id(value: str) -> str:
    if not JOB_ID.match(value):
        msg = "is no job id: 1 to 128 of A-Z a-z 0-9 . _ : @ - that start with a letter or a digit"
        raise PydanticCustomError("job_id", msg)
    return value


def _drop_repeated(value: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value))


JobId = Annotated[str, AfterValidator(_check_job_id)]
BatchName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(refuse_control_characters)]
if TYPE_CHECKING:
    JobIds = Sequence[JobId]
    BatchNames = Sequence[BatchName]
else:
    JobIds = Annotated[tuple[JobId, ...], Field(max_length=MAX_AFTER_JOBS), AfterValidator(_drop_repeated)]
    BatchNames = Annotated[tuple[BatchName, ...], Field(max_length=MAX_AFTER_BATCHES), AfterValidator(_drop_repeated)]


class AfterSpec(ContractModel):
    """Jobs and batches that the job waits for; a plain list is taken as `jobs`.

    The job starts when the newest runs of all of them have ended ``OK``. Otherwise it is cancelled.
    """

    jobs: JobIds = Field(default=(), description="Ids of jobs that must end `OK` first; `after: [ID]` is the same.")
    batches: BatchNames = Field(
        default=(), description="Names of batches; all of their jobs must end `OK` first, once they are sealed."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_list(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return {"jobs": cast("Sequence[object]", value)}
        if isinstance(value, str):
            msg = "must be a list of job ids, or an object with jobs and batches"
            raise PydanticCustomError("after_type", msg)
        return value

    def __bool__(self) -> bool:
        """Whether it names anything."""
        return bool(self.jobs or self.batches)
