"""Listen to the events that Celery broadcasts."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable


class Events:
    """All events that Celery broadcasts; `on_event` is called with each as it comes."""

    def __init__(self, app: Any, on_event: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
        self.seen: list[dict[str, Any]] = []
        self._on_event = on_event
        self._app = app
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _listen(self) -> None:
        with self._app.connection() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._take})
            with receiver.consumer_context(wakeup=False) as (own_connection, *_):
                self._ready.set()
                while not self._stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        own_connection.drain_events(timeout=0.2)

    def _take(self, event: dict[str, Any]) -> None:
        self._on_event(event)
        self.seen.append(event)
