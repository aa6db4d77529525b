"""The preview of an act, and its result."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandfleet_config.units import format_count

from sandfleet.channel.fleet_state import MAX_COUNTED

if TYPE_CHECKING:
    from sandfleet.channel.fleet_state import Cordon, Pause


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPreview:
    """A host before a cordon or a drain: its jobs, and the mark that it has."""

    host: str
    is_known: bool
    workers: int = 0
    running: int = 0
    waiting: int = 0
    cordon: Cordon | None = None

    @property
    def text(self) -> str:
        """The host in one sentence."""
        if not self.is_known:
            return f"no live worker is on {self.host}: a mark counts from when one starts"
        jobs = f"{format_count(self.running, 'job runs', 'jobs run')} there"
        jobs += f", {format_count(self.waiting, 'waits for its start', 'wait for their start')}"
        return f"{self.host} has {format_count(self.workers, 'worker')}; {jobs}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePreview:
    """A queue before a pause: jobs that wait, and how many of the next 10,000 expire meanwhile."""

    queue: str
    waiting: int = 0
    expire_in_hour: int = 0
    expire_in_day: int = 0
    pause: Pause | None = None

    @property
    def text(self) -> str:
        """The queue in one sentence."""
        of_next = f"of the next {MAX_COUNTED:,} jobs " if self.waiting > MAX_COUNTED else ""
        expire = (
            f"{of_next}{self.expire_in_hour} would expire within an hour of pause, {self.expire_in_day} within a day"
        )
        return f"{format_count(self.waiting, 'job waits', 'jobs wait')} in {self.queue}; {expire}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsPreview:
    """The jobs that a selection names: how many, and the first few ids; `is_more` if not all were counted."""

    text: str
    count: int
    is_more: bool = False
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionResult:
    """The result of an act: `done`; `skipped`, nothing was to do; `gone`, it was too late.

    `reasons` counts the jobs of `skipped` and `gone` by why, and of `done` by what was done.
    `has_more`: the selection names more jobs; call again with the same one.
    """

    done: int = 0
    skipped: int = 0
    gone: int = 0
    has_more: bool = False
    reasons: Counter[str] = field(default_factory=Counter[str])
    text: str = ""

    def __add__(self, other: ActionResult) -> ActionResult:
        """Return both together; the text and `has_more` are those of `other`."""
        return ActionResult(
            done=self.done + other.done,
            skipped=self.skipped + other.skipped,
            gone=self.gone + other.gone,
            has_more=other.has_more,
            reasons=self.reasons + other.reasons,
            text=other.text,
        )

    def describe(self) -> str:
        """Return the counts with their reasons in one line."""
        why = "; ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.done} done, {self.skipped} skipped, {self.gone} gone" + (f" ({why})" if why else "")
