"""The acts of the pages, and the questions before each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet_web.pages.user_files import Viewer

VerbName: TypeAlias = Literal["cordon", "drain", "uncordon", "pause", "resume", "cancel", "retry", "requeue", "purge"]
MAX_AT_ONCE: Final = 1000
"""Most jobs that one act changes."""
TYPED_ABOVE: Final = 100
"""Above so many jobs their number is to be typed."""


@dataclass(frozen=True)
class Verb:
    """An act: its title, its button, whether it needs a reason, and what it is done to."""

    title: str
    button: str
    takes_away: bool
    """It takes capacity away, so it needs a reason."""
    target: str
    """``host``, ``queue``, ``jobs`` or ``dead letters``."""
    effect: str


VERBS: Final[Mapping[str, Verb]] = {
    "cordon": Verb(
        "Cordon host",
        "Cordon",
        True,
        "host",
        "It starts no more jobs; what runs goes on. The mark holds over restarts, until somebody takes it away.",
    ),
    "uncordon": Verb("Uncordon host", "Uncordon", False, "host", "It starts jobs again."),
    "drain": Verb(
        "Drain host",
        "Drain",
        True,
        "host",
        "It starts no more jobs. What still runs at the deadline goes back to its queue: told in its attempts, not"
        " charged; a job with max_attempts=1 ends WORKER_LOST.",
    ),
    "pause": Verb("Pause queue", "Pause", True, "queue", "No job of it starts; submits go on."),
    "resume": Verb("Resume queue", "Resume", False, "queue", "Its jobs start again."),
    "cancel": Verb(
        "Cancel jobs", "Cancel", True, "jobs", "Queued jobs end at once, running ones are ended by their workers."
    ),
    "retry": Verb(
        "Retry jobs",
        "Retry",
        False,
        "jobs",
        "The next run of each starts under its id. The outcomes of the earlier runs are kept.",
    ),
    "requeue": Verb("Requeue dead letters", "Requeue", False, "dead letters", "Each is queued again as its next run."),
    "purge": Verb(
        "Purge dead letters",
        "Purge",
        True,
        "dead letters",
        "They are deleted; outcomes are kept. This cannot be undone.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A wish to act. `seen` is when its count was shown; jobs that ended later are left alone."""

    verb: str
    target: str = ""
    batch: str = ""
    job: str = ""
    code: str = ""
    words: str = ""
    reason: str = ""
    deadline_seconds: float | None = None
    seen: float = 0.0

    def describe(self) -> str:
        """Return what it is done to, as people read it."""
        if self.target:
            return self.target
        words = [f"job {self.job}"] if self.job else []
        words += [f"batch {self.batch}"] if self.batch else []
        words += [f"code {self.code}"] if self.code else []
        return ", ".join([*words, *([self.words] if self.words else [])]) or "all dead letters"


@dataclass(frozen=True)
class Preview:
    """The preview of an act: how many jobs it would change now, and what to know before."""

    count: int
    notes: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """The result of an act: a sentence, and how many jobs were changed, left alone, and no longer there."""

    text: str
    done: int = 0
    skipped: int = 0
    gone: int = 0


class Acts(Protocol):
    """Counts and does; each call blocks.

    Raises `FleetUnavailable` if Redis is down, and ``ValueError`` with a sentence for what cannot be
    done.
    """

    def preview(self, wish: Wish) -> Preview:
        """Return what it would do, and do nothing."""
        ...

    def perform(self, wish: Wish, viewer: Viewer) -> Done:
        """Do it, and leave a line in the audit."""
        ...
