"""The questions that people ask about ended runs, and the values that answer them.

Implemented on the history file and over HTTP. No answer holds env, stdin or output. Times are unix
times, durations seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PAGE: Final = 500
MAX_DEPTH: Final = 10_000
"""How far a list of rows goes; narrow the filter to see others."""
MAX_TIMED: Final = 50_000
"""Runs whose times are put in order; of more, the newest ones."""
QUERY_SECONDS: Final = 2.0
"""Deadline of one query; after it `QueryTooSlow` says to narrow the time."""


@dataclass(frozen=True, kw_only=True)
class HistoryFilter:
    """The ended runs that have one of `codes` or `categories`, and all of the rest.

    What is empty is not asked for.
    `since` and `until` bound the end. `text` is looked for in the command line and the message,
    without regard to case. `is_newest` leaves out runs that a later run replaced.
    """

    batch: str = ""
    job_id: str = ""
    codes: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    host: str = ""
    queue: str = ""
    image: str = ""
    exit_code: int | None = None
    fingerprint: str = ""
    text: str = ""
    since: float | None = None
    until: float | None = None
    min_attempts: int = 0
    min_seconds: float = 0.0
    is_newest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PastAttempt:
    """An attempt of an ended run."""

    host: str
    worker: str = ""
    slot: int | None = None
    code: str = ""
    started: float = 0.0
    ended: float = 0.0
    charged: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """One ended run. `number` is its place among all ended runs of the fleet.

    `message` has at most 200 characters, as has `line`, the command line with secrets hidden.
    `fingerprint` is the same for failures of one kind: code and message without numbers, ids and
    paths. `steps` are the seconds of each step of the last attempt: queued, image, create, run,
    collect, cleanup. `attempts` are the first and the newest ones of `attempt_count`. A batch of
    more than 120 bytes ends with digits of its hash; of many labels only the first are there.
    `spec_sha256` are its first 16 digits.
    """

    number: int
    job_id: str
    run: int
    code: str
    category: str
    submitted: float
    started: float
    ended: float
    batch: str = ""
    queue: str = ""
    host: str = ""
    image: str = ""
    image_digest: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    line: str = ""
    message: str = ""
    fingerprint: str = ""
    exit_code: int | None = None
    signal: int | None = None
    start: str = ""
    steps: Mapping[str, float] = field(default_factory=dict[str, float])
    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None
    memory_bytes: int = 0
    attempts: tuple[PastAttempt, ...] = ()
    attempt_count: int = 0
    spec_sha256: str = ""

    @property
    def seconds(self) -> float:
        """The seconds from its last start to its end; 0.0 if it did not start."""
        return max(0.0, self.ended - self.started) if self.started else 0.0


@dataclass(frozen=True, slots=True)
class PastPage:
    """A page of runs, newest end first; `cursor` asks for the next one, empty at the end."""

    rows: tuple[PastRun, ...]
    cursor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failures of one kind; `hosts` and `batches` say how many it was seen on and in.

    `example` is the id of the newest one, `trend` the counts of the last 24 equal parts of the time.
    """

    code: str
    category: str
    message: str
    fingerprint: str
    image: str
    count: int
    hosts: int
    batches: int
    first: float
    last: float
    example: str
    top_host: str = ""
    top_batch: str = ""
    trend: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RollupPoint:
    """The ended runs of some minutes: how many by the key that was asked for.

    `queued_seconds` and `run_seconds` are sums; `attempts` counts attempts.
    """

    at: float
    key: str
    count: int
    attempts: int = 0
    queued_seconds: float = 0.0
    run_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """The use of a batch, or of a label's value.

    GiB hours are the memory limit times the seconds of the program.
    """

    key: str
    jobs: int
    ok: int
    cpu_hours: float
    gib_hours: float
    failures: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """How long runs that ended with `code` ran and waited, in seconds; code "" is all of them.

    A run's time is that from its last start to its end, its wait that from submit to its last start.
    None: none of them has started.
    """

    code: str
    count: int
    run_median: float | None = None
    run_p95: float | None = None
    wait_median: float | None = None
    wait_p95: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryStatus:
    """How old and how complete the history is.

    `number` is that of the newest stored run, `head` that of the newest of the fleet; `lost` runs
    left the stream before they were read, the newest of them at `lost_at` (0.0: none, or an earlier
    release counted them). `lag_seconds` is the age of the oldest run that is not
    stored yet, 0.0 if there is none. `begun` is when the file was begun. `skipped` entries of the
    stream were not runs. `note` tells what happened to the file, `fault` why it stands still now.
    """

    at: float
    number: int = 0
    head: int = 0
    lost: int = 0
    lost_at: float = 0.0
    lag_seconds: float = 0.0
    rows: int = 0
    size_bytes: int = 0
    oldest: float = 0.0
    begun: float = 0.0
    skipped: int = 0
    note: str = ""
    fault: str = ""


RollupKey: TypeAlias = Literal["category", "code", "queue", "host", "image", "tries", "failed_tries"]
"""The last two count tries of a host, and those of them that failed by our doing, not ended runs."""
FailureKey: TypeAlias = Literal["fingerprint", "code", "image", "host", "batch"]
UsageKey: TypeAlias = Literal["batch", "label"]


class History(Protocol):
    """Ask about ended runs; safe for concurrent use.

    Each method raises `HistoryUnavailable` if there is no history in reach, `QueryTooSlow` at its
    deadline, and `ValueError` for a cursor that is none.
    """

    def status(self) -> HistoryStatus:
        """Return how old and how complete it is."""
        ...

    def find_runs(self, wanted: HistoryFilter, *, count: int = 50, cursor: str = "") -> PastPage:
        """Return the runs that match, newest end first."""
        ...

    def count_runs(self, wanted: HistoryFilter) -> int:
        """Return how many match, at most `MAX_DEPTH` + 1."""
        ...

    def runs_of(self, job_id: str) -> Sequence[PastRun]:
        """Return the ended runs of a job, newest first."""
        ...

    def find_failures(
        self, wanted: HistoryFilter, *, by: FailureKey = "fingerprint", count: int = 100
    ) -> Sequence[FailureGroup]:
        """Group the runs that match and did not end OK, the largest group first."""
        ...

    def roll_up(self, by: RollupKey, *, since: float, until: float, step_seconds: int = 60) -> Sequence[RollupPoint]:
        """Count the ended runs of each step of time, from counts by minute that are kept."""
        ...

    def find_usage(
        self, by: UsageKey, wanted: HistoryFilter, *, label: str = "", count: int = 100
    ) -> Sequence[UsageRow]:
        """Sum up use, the most CPU first; `label` is the label's key."""
        ...

    def find_times(self, wanted: HistoryFilter) -> Sequence[RunTimes]:
        """Return the times of all runs that match, then by code; of more than `MAX_TIMED`, of the newest."""
        ...
