"""`Site`: what all handlers of one process share."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tornado import template

from sandfleet_web.pages import charts, text
from sandfleet_web.pages.loop_lag import LoopLag
from sandfleet_web.pages.reading import Reads

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sandfleet.channel.fleet_state import FleetState, FleetSummary
    from sandfleet.channel.protocol import Channel
    from sandfleet.history.questions import History, HistoryStatus
    from sandfleet_config.pages_settings import PagesSettings

    from sandfleet_web.pages.acts import Acts
    from sandfleet_web.pages.users import Users

HERE: Final = Path(__file__).parent
TEMPLATES: Final = HERE / "templates"
STATIC: Final = HERE / "static"
_SHOWN: Final = (
    "address",
    "word",
    "count",
    "plural",
    "share",
    "duration",
    "ago",
    "clock",
    "stamp",
    "size",
    "short_id",
    "clean",
    "group_words",
)


@dataclass(frozen=True)
class Sources:
    """The sources that the pages read, and the acts that they call.

    `history` is None where there is none in reach.
    """

    state: FleetState
    channel: Channel
    history: History | None
    acts: Acts


@dataclass
class Site:
    """The sources, the viewers and the templates of one process.

    `is_mounted` in Flower, whose own pages are beside these.
    """

    sources: Sources
    users: Users
    settings: PagesSettings
    is_mounted: bool = False
    reads: Reads = field(default_factory=Reads)
    loop_lag: LoopLag = field(default_factory=LoopLag)
    clock: Callable[[], float] = time.time
    version: str = field(init=False)
    """Changes with the static files, which browsers keep."""

    def __post_init__(self) -> None:
        files = sorted(STATIC.iterdir())
        self.version = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
        shown = {name: getattr(text, name) for name in _SHOWN}
        namespace: dict[str, Any] = {"shown": text.show, "_tt_utf8": text.encode, "charts": charts, **shown}
        namespace["link"] = text.link_attribute
        self._templates = template.Loader(str(TEMPLATES), autoescape="shown", namespace=namespace)

    def render(self, name: str, **values: Any) -> bytes:
        """Fill in a template; each value is escaped unless it is `text.Markup`."""
        return self._templates.load(name).generate(**values)

    async def read(self, key: Hashable, question: Callable[[], Any], *, kept_seconds: float = 1.0) -> Any:
        """Ask a question whose answer all viewers share."""
        return await self.reads.read(key, question, kept_seconds=kept_seconds)

    async def read_summary(self) -> FleetSummary:
        """Read workers, queues and counts."""
        return await self.reads.read("summary", self.sources.state.read_summary)

    async def read_history_status(self) -> HistoryStatus | None:
        """Read how old and how complete the history is; None if there is none."""
        history = self.sources.history
        return None if history is None else await self.reads.read("history", history.status)

    def age_target(self, queue: str) -> float:
        """Return the age in seconds above which the oldest job of a queue is told."""
        return self.settings.queue_ages.get(queue, self.settings.queue_age_seconds)

    def close(self) -> None:
        """End threads and connections."""
        self.loop_lag.stop()
        self.reads.close()
        self.sources.channel.close()
