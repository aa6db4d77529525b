"""The arguments of ``submit.lua`` for each job; another process than the sender may make them."""

from __future__ import annotations

from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import hiredis
import msgspec
from sandfleet_config.scripts import step_of

from sandfleet.channel.message import new_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.records import EncodedJob

MILLI: Final = 1000
WIDTH: Final = 7
"""Arguments of each job; `list_arguments` names them."""


class SentJob(NamedTuple):
    """A job that another process has encoded."""

    job_id: str
    key: str
    batch: str | None


class PackedJobs(msgspec.Struct, array_like=True, gc=False):
    """Jobs as another process has encoded them: `packed` has their arguments in Redis's protocol."""

    ids: list[str]
    keys: list[str]
    packed: bytes

    @classmethod
    def of(cls, jobs: Sequence[EncodedJob], queue: str, sender: int) -> PackedJobs:
        """Pack jobs, as `list_arguments` lists their arguments."""
        packed = pack_words(list_arguments(jobs, queue, sender))
        return cls([job.job_id for job in jobs], [job.key for job in jobs], packed)

    def list_jobs(self, batch: str | None) -> list[SentJob]:
        """Return the jobs, which belong to `batch`."""
        return list(map(SentJob, self.ids, self.keys, repeat(batch)))

    def list_arguments(self) -> list[Any]:
        """Return the arguments again."""
        reader = hiredis.Reader()
        reader.feed(pack_head(self.count_words()) + self.packed)
        found: list[Any] = reader.gets()
        return found

    def count_words(self) -> int:
        """Return the number of arguments."""
        return WIDTH * len(self.ids)


def pack_head(count: int) -> bytes:
    """Return what stands before the words of a command in Redis's protocol."""
    return b"*%d\r\n" % count


def pack_words(words: Sequence[Any]) -> bytes:
    """Return words of a command in Redis's protocol, without `pack_head`."""
    return _pack(tuple(words)).removeprefix(pack_head(len(words)))


def list_arguments(jobs: Sequence[EncodedJob], queue: str, sender: int | None = None) -> list[Any]:
    """Return the arguments of all jobs, one after the other.

    Of each: id, message, idempotency key, fingerprint, how it is delivered, record, needs. `sender`
    is the id of the process that sends them; None is this one.
    """
    arguments: list[Any] = []
    for job, message in zip(jobs, new_messages(jobs, queue, sender), strict=True):
        spec = job.spec
        arguments += (
            job.job_id,
            message,
            job.key,
            job.fingerprint,
            _encode_delivery(spec.priority, spec.queue_ttl, spec.max_attempts) + _encode_after(spec),
            job.encode_record(),
            job.needs,
        )
    return arguments


def _encode_after(spec: SandboxSpec) -> str:
    return f" {spec.after.model_dump_json(exclude_defaults=True)}" if spec.after else ""


@lru_cache(maxsize=256)
def _encode_delivery(priority: int, queue_ttl: float, max_attempts: int) -> str:
    return f"{step_of(priority)} {max(1, round(queue_ttl * MILLI))} {max_attempts}"


_pack: Final = cast("Callable[[tuple[Any, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]  its result has no type
